"""The page of results as text: complete, escaped, without an address outside itself."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from analysis.report.__main__ import main
from analysis.report.page import read, render
from analysis.report.runs import LOG_LINES, find_runs
from analysis.report.tables import grid
from analysis.tables.tabular import Table
from tests.analysis.test_analysis import points, write_demo, write_run
from tests.analysis.test_table1 import edit, folder_of, to_hub, write_suite

EVIL = (
    "<script>window.hacked=1</script>",
    '"><img src=x onerror="window.hacked=2">',
    "</script></style></textarea></title><script>window.hacked=3</script>",
    "<!-- <a href='https://evil.example/'>{{ 7*7 }} %{x} &lt;b&gt; javascript:alert(1)",
)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c6360606060000000050001a5f64540"
    "0000000049454e44ae426082"
)
LIBRARIES = 3  # scripts: Plotly, DataTables and what joins them


class Seen(HTMLParser):
    """What a browser would make of a page: its tags with attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def hostile(root: Path) -> Path:
    """Write a suite, single runs and a figure with evil words wherever a file can hold some."""
    suite = write_suite(root / "suite")
    plan = json.loads((suite / "suite.json").read_text())
    plan["title"] = EVIL[2]
    plan["columns"][1]["label"] = EVIL[0]
    (suite / "suite.json").write_text(json.dumps(plan))
    for result in suite.rglob("result.json"):
        edit(result, metrics=points(40, 80))
    failed = folder_of(suite, "copa", "agzo", 2, "lr0.001")
    (failed / "result.json").unlink()
    (failed / "failed.json").write_text(
        json.dumps({"error": EVIL[1], "config": {EVIL[0]: EVIL[1]}})
    )
    (failed / "log.txt").write_text(f"all is well\n{EVIL[2]}\n")
    for seed, evil in enumerate(EVIL):
        changes: dict[str, Any] = {
            "model": {"name": evil, "source": evil}, "task": f"task-{seed}", "variant": f"v{seed}",
            "machine": {"device": evil, evil: evil}, "git_commit": evil, "suite": evil,
            "versions": {evil: evil}, "embeddings": evil,
            "config": {"method": {"lr": 1e-3, evil: evil}, "train": {"batch_size": 16}},
        }  # fmt: skip
        path = write_run(root / "single", seed=seed, **changes)
        edit(path, task=evil, variant=evil, method=evil)
        (path.parent / "log.txt").write_text(evil)
    (root / "<img src=x onerror=alert(1)>").mkdir()
    image = root / "<img src=x onerror=alert(1)>" / "loss.png"
    image.write_bytes(PIXEL)
    image.with_suffix(".txt").write_text(f"A caption. {' '.join(EVIL)}")
    return root


@pytest.fixture(scope="module")
def evil(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    return Seen(render(read(hostile(tmp_path_factory.mktemp("evil")))))


def test_hostile_strings_are_text_and_nothing_else(evil: Seen) -> None:
    for words in EVIL:
        assert evil.text.count(words) > 10, words
    executed = [a for a in evil.all("script") if a.get("type") != "application/json"]
    assert len(executed) == LIBRARIES
    allowed = {
        "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "h3", "p", "span",
        "a", "noscript", "nav", "main", "section", "div", "table", "thead", "tbody", "tfoot", "tr",
        "th", "td", "button", "small", "strong", "details", "summary", "ul", "li", "figure", "form",
        "input", "label", "select", "option", "fieldset", "legend", "script", "article", "dl", "dt",
        "dd", "pre", "img", "figcaption", "b", "br",
    }  # fmt: skip
    assert {tag for tag, _ in evil.tags} <= allowed
    names = {name for _, attributes in evil.tags for name in attributes}
    assert not [name for name in names if name.startswith("on")]
    assert not names & {"srcset", "style", "action", "formaction", "ping", "background"}
    assert len(evil.all("img")) == 1


def test_the_page_names_no_address_outside_itself(evil: Seen) -> None:
    for tag, attributes in evil.tags:
        assert (attributes.get("href") or "#").startswith("#"), tag
        assert (attributes.get("src") or "data:").startswith("data:"), tag
    policy = next(a["content"] for a in evil.all("meta") if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == LIBRARIES
    assert "connect-src" not in policy  # default-src stands for it: no connection at all
    assert not re.search(r"script-src[^;]*(unsafe|http|\*)", policy)


def test_data_of_charts_cannot_leave_their_script(tmp_path: Path) -> None:
    page = render(read(hostile(tmp_path)))
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    assert len(blocks) > 20
    for block in blocks:
        assert not re.search(r"[<>&']", block)
        for trace in json.loads(block)["traces"]:
            texts = trace["name"] + trace["hovertemplate"].replace("<br>", "").replace(
                "<extra></extra>", ""
            ).replace("<b>", "").replace("</b>", "")
            assert "<" not in texts  # Plotly reads tags in them
            assert "%{x}" not in texts


def test_a_suite_is_complete(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "table1")
    for path in suite.rglob("result.json"):
        edit(path, metrics=points(40, 80))
    to_hub(suite)
    page = read(suite)
    seen = Seen(render(page))
    (part,) = page.parts
    main_table = part.tables[0]
    agzo = main_table.rows[0][2]
    assert (agzo.text, agzo.key, agzo.strong) == ("91.0 ± 1.0", "91.0", True)
    assert agzo.beside == "paper 87.7, +3.3"
    assert [shown.text for shown in main_table.foot][:2] == ["mean", "84.0 ± 1.5"]
    assert [table.title.split(":")[0] for table in part.more] == [
        "Table 1, paired comparisons", "Table 1, chosen settings", "Table 1, costs",
            "Table 1, all grid cells",
    ]  # fmt: skip
    assert "As printed in arXiv 2601.17261" in part.printed[0].title
    for table in (*part.tables, *part.more, *part.printed):
        for row in (*table.rows, table.foot):
            for shown in row:
                assert shown.text in seen.text
        for note in table.notes:
            assert note in seen.text
    assert page.counts == [("finished", len(page.details))]
    assert page.gaps == 0
    assert "every table is complete" in seen.text
    lines = {trace["name"] for chart in part.charts for trace in chart.traces}
    assert lines == {"first order", "AGZO", "MeZO", "LOZO", "zero-shot", "in-context"}
    (chart,) = part.charts
    assert chart.choices[0].options == {"sst2": "sst2", "copa": "copa"}
    seeds = [t for t in chart.traces if t["name"] == "AGZO" and t["shown"]["task"] == "sst2"]
    assert len(seeds) == 3 * 3  # seeds and measures: the losing cell of the grid is not drawn
    assert sum(trace["showlegend"] for trace in seeds) == 3  # one entry for each measure


def test_every_run_has_its_configuration_commit_machine_and_log(tmp_path: Path) -> None:
    path = write_run(
        tmp_path, seed=3, git_dirty=True, machine={"device": "cpu", "device_name": "a core"},
        versions={"torch": "2.13.0"},
        config={"method": {"lr": 0.5, "eps": None}, "train": {"batch_size": 16, "packing": True}},
    )  # fmt: skip
    (path.parent / "log.txt").write_text("".join(f"line {i}\r" for i in range(LOG_LINES + 5)))
    seen = Seen(render(read(tmp_path)))
    for words in (
        "method.lr=0.5\nmethod.eps=null\ntrain.batch_size=16\ntrain.packing=true",
        "0123456789+", "device cpu; device_name a core", "torch 2.13.0",
        "70.00 % of 80", "5 earlier lines", "line 204", "MeZO on sst2, pocket, seed 3",
        "step  forwards  seconds    loss  dev loss  dev score\n   1         2        -  0.7480",
    ):  # fmt: skip
        assert words in seen.text, words
    assert "line 4\n" not in seen.text
    opened = [a["popovertarget"] for a in seen.all("button") if a.get("class") == "open"]
    assert opened == [a["id"] for a in seen.all("article")] == ["run-1"]


def test_what_is_missing_or_failed_is_told(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite")
    for path in suite.rglob("result.json"):
        edit(path, metrics=points(40, 80))
    shutil.rmtree(folder_of(suite, "sst2", "mezo", 1, "lr0.001"))
    begun = folder_of(suite, "sst2", "lozo", 2, "lr0.001")
    (begun / "result.json").unlink()
    rows = [json.dumps(point) for point in points(10, 20)]
    (begun / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 11, "forw')
    (begun / "config.yaml").write_text("train:\n  steps: 399\n")
    over = folder_of(suite, "copa", "agzo", 2, "lr0.001")
    (over / "result.json").unlink()
    (over / "failed.json").write_text(json.dumps({"error": "NonFiniteLoss: nan", "diverged": True}))
    cut = write_run(tmp_path / "single", task="rte")
    cut.write_text(cut.read_text()[:100])
    page = read(tmp_path)
    states = {run.place: run.run for run in page.details if not run.run.finished}
    assert {place: run.state for place, run in states.items()} == {
        "suite/pocket/sst2/lozo+lr0.001/seed2": "unfinished",
        "suite/pocket/copa/agzo+lr0.001/seed2": "diverged",
        "single/rte-mezo-None-0": "unreadable",
    }
    assert [len(run.points) for run in states.values()].count(10) == 1
    assert "result.json: not valid JSON" in states["single/rte-mezo-None-0"].why
    seen = Seen(render(page))
    for words in (
        "seed 1 has not run: pocket/sst2/mezo+lr0.001/seed1", "NonFiniteLoss: nan",
        "begun, without a result: stopped, or still at work", "steps: 399", "3 gaps in tables",
    ):  # fmt: skip
        assert words in seen.text, words


def test_files_that_contradict_each_other_are_told_in_the_tables_place(tmp_path: Path) -> None:
    suite = write_suite(tmp_path / "suite")
    for path in suite.rglob("result.json"):
        edit(path, metrics=points(40, 80))
    edit(folder_of(suite, "sst2", "mezo", 1, "lr0.001") / "result.json", config__train__steps=7)
    page = read(tmp_path)
    (part,) = page.parts
    assert "key config.train.steps is 7" in part.error
    assert not part.tables
    assert part.charts
    seen = Seen(render(page))
    assert f"No table: {part.error}" in seen.text


def test_single_runs_make_a_part_of_each_suite_name(tmp_path: Path) -> None:
    write_demo(tmp_path / "demo")
    write_run(tmp_path / "other", suite="sweep", method="lozo")
    page = read(tmp_path)
    assert [part.title for part in page.parts] == ["demo", "sweep"]
    assert len(page.parts[0].tables) == 3
    assert page.parts[0].warnings[0].startswith("Pocket results")
    (chart,) = page.parts[0].charts
    zero = [trace for trace in chart.traces if trace["name"] == "zero-shot"]
    assert not zero  # it has logged nothing here
    names = {(t["name"], t["line"]["color"]) for t in chart.traces}
    assert ("AGZO", "#D55E00") in names  # the colour of the printed figures
    assert "seconds" not in next(c for c in chart.choices if c.name == "x").options
    assert read(tmp_path / "other" / "sst2-lozo-None-0").parts[0].tables  # one run's own folder


def test_single_runs_of_two_experiments_are_told_in_the_tables_place(tmp_path: Path) -> None:
    write_run(tmp_path / "one")
    write_run(tmp_path / "two", seed=1, config__train__batch_size=8)
    write_run(tmp_path / "other", suite="sweep")
    page = read(tmp_path)
    demo, sweep = page.parts
    assert "key config.train.batch_size is 8" in demo.error
    assert (len(demo.tables), len(demo.charts), len(sweep.tables)) == (0, 1, 1)
    assert f"No table: {demo.error}" in Seen(render(page)).text


def test_curves_carry_both_axes(tmp_path: Path) -> None:
    steps = [point | {"seconds": point["step"] / 8} for point in points(40, 80)]
    write_run(tmp_path, metrics=steps)
    start = {"step": 0, "forwards": 0, "loss": None, "seconds": 0.0, "dev": steps[19]["dev"]}
    write_run(tmp_path, method="zero_shot", steps=0, forwards=0, metrics=[start])
    (chart,) = read(tmp_path).parts[0].charts
    by_name = {(t["name"], t["shown"]["measure"]): t for t in chart.traces}
    dev = by_name["MeZO", "dev_loss"]
    assert dev["x"] == {"forwards": [40, 80], "seconds": [2.5, 5.0]}
    assert dev["y"] == [0.65, 0.55]
    assert by_name["MeZO", "dev_score"]["y"] == [60.0, 60.0]
    level = by_name["zero-shot", "dev_loss"]
    assert level["x"] == {"forwards": [0, 80], "seconds": [0, 5.0]}
    assert len(set(level["y"])) == 1


def test_many_series_of_one_method_differ_in_colour_or_dash(tmp_path: Path) -> None:
    for i in range(20):
        write_run(tmp_path, variant=f"v{i:02}", metrics=points(20, 40))
    (chart,) = read(tmp_path).parts[0].charts
    looks = {(t["line"]["color"], t["line"]["dash"]) for t in chart.traces}
    assert len(looks) == 20


def test_runs_that_differ_in_their_settings_are_lines_of_their_own(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / "low", seed=seed)
    write_run(tmp_path / "high", config__method={"lr": 1e-2, "eps": 1e-2})
    write_run(tmp_path / "batch", config__train__batch_size=8, seed=2)
    write_run(tmp_path / "rte", task="rte", method="agzo", config__method={"lr": 1.0, "eps": 1e-2})
    write_run(tmp_path / "sst2", method="agzo")  # of another task: no other line
    (chart,) = read(tmp_path).parts[0].charts
    looks: dict[str, set[tuple[str, str]]] = {}
    for trace in chart.traces:
        look = (trace["line"]["color"], trace["line"]["dash"])
        looks.setdefault(trace["name"], set()).add(look)
    assert list(looks) == [
        "MeZO, lr 0.001, train.batch_size 8",
        "MeZO, lr 0.01, train.batch_size 16",
        "MeZO, lr 0.001, train.batch_size 16",
        "AGZO",
    ]
    assert len(set.union(*looks.values())) == 4


def test_cells_are_numbers_where_a_whole_column_is() -> None:
    rows = [
        ["x", "1,234", "**1e-05**", "3 of"],
        ["y", "- †", "0.5 ± 0.1", "2layers"],
        ["z", "-7", "-", ""],
    ]
    made = grid(Table("t", ["a", "n", "p", "mixed"], rows), "t")
    assert made.numeric == [False, True, True, False]
    assert [row[1].key for row in made.rows] == ["1234", "", "-7"]
    assert [row[2].key for row in made.rows] == ["1e-05", "0.5", ""]
    assert made.rows[0][2].strong
    assert made.rows[0][3].key is None


def test_a_column_with_units_is_sorted_by_what_they_mean() -> None:
    sizes = ["5 B", "512 KiB", "2.5 GiB", "30 MiB", "1e+03 MiB", "-"]
    made = grid(Table("t", ["state"], [[size] for size in sizes]), "t")
    assert made.numeric == [True]
    keys = {row[0].text: float(row[0].key or "-1") for row in made.rows}
    assert sorted(keys, key=lambda text: keys[text]) == [
        "-", "5 B", "512 KiB", "30 MiB", "1e+03 MiB", "2.5 GiB",
    ]  # fmt: skip
    assert keys["512 KiB"] == 512 * 1024


def test_command_writes_the_page_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_demo(tmp_path / "demo")
    assert main([str(tmp_path / "demo")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "page of results: 12 finished; 0 gaps in tables",
        f"{tmp_path}/demo/report.html",
    ]
    page = Path(said[-1]).read_text(encoding="utf-8")
    assert page.startswith("<!DOCTYPE html>")
    assert page == render(read(tmp_path / "demo"))  # no date, no order of chance
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / "empty")]) == 1
    assert "holds nothing to show" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere")]) == 1
    assert "no such folder" in capsys.readouterr().err


def test_a_damaged_log_of_steps_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    (run,) = find_runs(tmp_path)
    assert run.state == "unreadable"
    assert run.why.startswith("metrics.jsonl: line 1 is not valid JSON")


def test_another_bundle_of_datatables_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "runs")
    (tmp_path / "bundle.js").write_text("export{a as Table};")
    monkeypatch.setattr("itables.options.dt_bundle", tmp_path / "bundle.js")
    assert main([str(tmp_path / "runs")]) == 1
    assert "0 default exports; expected one, as in itables 2.9" in capsys.readouterr().err

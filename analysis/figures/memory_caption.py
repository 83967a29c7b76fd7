"""The words under Figures 3 and 4: what is counted, of which model, and where it runs out."""

from analysis.figures.style import label
from analysis.reading.memory_points import LIMIT, SERIES, Sweep, criterion
from analysis.reading.probe import code, device

BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
MODELS = {
    "0.6b": "the shape of Qwen3-0.6B",
    "1.7b": "the shape of Qwen3-1.7B",
    "smollm2-135m": "the shape of SmolLM2-135M (a Llama)",
    "pangu-1b": "the shape of openPangu-Embedded-1B as a Llama with attention bias, its head tied "
    "to the embedding (whether the real one is tied is not known)",
}
KINDS = {
    "counted": "Counted: bytes of live tensors while the code runs on tensors without values, each "
    "rounded up to 512 as CUDA's allocator does; on no device, so without kernels' workspaces, the "
    "allocator's fragmentation and the CUDA context.",
    "cuda": "Measured: the peak that torch's CUDA allocator handed out, one process a point; "
    "without the CUDA context.",
    "resident": "Measured: the peak resident set of one process a point, less that of the process "
    "before it made the model.",
}


def caption(sweeps: list[Sweep]) -> list[str]:
    """Say what is shown, how it was found, and where curves run out of memory."""
    figures = [f"({s.paper.source['where']} of the paper)" for s in sweeps if s.paper is not None]
    lines = [
        "Peak memory of one training step, weights included (inference: of one forward), against "
        f"sequence length and batch size{' '.join(dict.fromkeys(['', *figures]))}.",
        "Solid: this library's optimizers, logits at the label positions alone. Dashed: as "
        "published code runs, in-place steps, logits of all positions, a shifted copy of them and "
        "their log-softmax over the vocabulary, key/value caches kept. SGD's step is the same in "
        "both, without momentum; checkpointed: activations of every decoder layer are made again "
        "in the backward. MeZO's and AGZO's points stand a little aside, to be seen.",
    ]
    for number, sweep in enumerate(sweeps):
        settings = sweep.probe.about["settings"]
        letters = "abcdefgh"[2 * number : 2 * number + 2]
        where = f"Panels ({letters[0]}), ({letters[1]}). " if len(sweeps) > 1 else ""
        shape = MODELS.get(settings["shape"], f"a Qwen3 of the shape {settings['shape']!r}")
        lines += [
            f"{where}{KINDS[sweep.kind]}",
            f"Model: random weights of {shape}, {sweep.probe.get('parameters', int):,} parameters, "
            f"{sweep.dtype}. Input: random tokens in rows of equal length without padding, the "
            f"last {sweep.probe.get('answer_tokens', int)} of them the answer (DROP's are short). "
            f"Attention: {_attention(sweep)} One measurement a point (n = 1; seed 0; nothing "
            "depends on the seed).",
        ]
        lines += _beside_the_paper(sweep)
        lines += _running_out(sweep)
        lines.append(" ".join(criterion(sweep)))
        lines.append(f"Machine: {_machine(sweep)} Code: {code(sweep.probe.about)}.")
    return [line for line in lines if line]


def _beside_the_paper(sweep: Sweep) -> list[str]:
    """Compare the published series with the paper's points."""
    if not sweep.printed:
        return []
    lines = [
        "Open markers: the paper's points as far as they are known, in its GB, drawn as GiB (which "
        "of the two it means is not said); OOM: it ran out of memory there. Its rows are DROP's, "
        "cut to the length; ours all have that length."
    ]
    for method in sweep.methods:
        both = [
            (ours, point)
            for point in sweep.printed
            if point.method == method
            and point.peak is not None
            and (ours := sweep.peaks.get(("published", method, point.batch, point.length)))
        ]
        if not both:
            continue
        at = ", ".join(
            f"{ours / (point.peak or 1):.2f} at {point.batch} x {point.length}"
            for ours, point in both
        )
        lines.append(f"Published code here over the paper's {label(method)}: {at}.")
        if method == "sgd":
            less = [(point.peak or 0) - ours for ours, point in both]
            moments = 2 * sweep.probe.get("parameters", int) * BYTES[sweep.dtype] / 2**30
            lines[-1] += (
                f" The paper's is {min(less):.1f} to {max(less):.1f} GiB above; the two moments "
                f"that AdamW keeps would be {moments:.1f} GiB (its optimizer is not stated)."
            )
    return lines


def _attention(sweep: Sweep) -> str:
    if sweep.kind != "counted":
        return "torch's choice of kernel."
    if sweep.probe.get("settings.attention", str) == "math":
        return "the kernel that writes out all scores."
    fused = (
        "counted as a fused kernel (flash in half precision, memory-efficient in float32 with "
        "key/value heads repeated)."
    )
    if sweep.dtype != "float32":
        return fused
    return fused + (
        " This library repeats the heads itself. Published code leaves it to torch, which has no "
        "fused kernel for that in float32 on CUDA and writes out the scores: measured, its points "
        "are higher (--attention math counts that)."
    )


def _running_out(sweep: Sweep) -> list[str]:
    if not sweep.limited:
        return []
    found = []
    for series in sweep.series:
        for method in sweep.methods:
            over = [
                [
                    f"from {name} {pair[along]}"
                    for pair in pairs
                    if _is_over(sweep.peaks.get((series, method, *pair), 0.0))
                ][:1]
                for name, along, pairs in (
                    ("length", 1, [(sweep.batch, length) for length in sweep.lengths]),
                    ("batch", 0, [(batch, sweep.length) for batch in sweep.batches]),
                )
            ]
            words = " and ".join(first for one in over for first in one)
            if words:
                found.append(f"{label(method)}, {SERIES[series]}, {words}")
    return [f"Above {LIMIT:g} GiB (crosses): {'; '.join(found) or 'none'}."]


def _is_over(peak: float | None) -> bool:
    return peak is None or peak > LIMIT


def _machine(sweep: Sweep) -> str:
    if sweep.kind == "counted":
        return "none is involved in the numbers (tensors on torch's meta device)."
    return f"{device(sweep.probe.about)}."

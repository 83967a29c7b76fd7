"""The page: each statement in our own words, what it needs, how it is checked, and the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.theory.evidence import Row

Found = Mapping[str, Sequence[Row]]


@dataclass(frozen=True)
class Section:
    """A statement, and the claims (names of functions) that check it."""

    title: str
    claims: tuple[str, ...]
    says: str
    needs: str
    checked: str
    practice: str


SECTIONS = (
    Section(
        "Proposition 5.1: the mean of the estimate",
        ("quadratic", "smooth"),
        "Hold the bases A fixed and average AGZO's estimate g Δ over the noise R and the batch. "
        "The result is the gradient of a smoothed loss F_μ,A (the loss averaged over "
        "perturbations of size μ inside the bases), projected on the bases: ∇F_μ,A AAᵀ. It is not "
        "the gradient: what lies outside the bases is never seen.",
        "R is standard normal and independent over layers; the bases do not depend on the batch "
        "that the loss is taken on; μ may be any size.",
        "The bases are taken on a batch of their own (`refresh_every` keeps them), then thousands "
        "of one-sided estimates are averaged. On a loss quadratic in all weights smoothing adds "
        "only a constant, so ∇F_μ,A = ∇F exactly. On a tanh network ∇F_μ,A is found without "
        "finite differences, by backpropagation at W + μΔ with noise of its own. Two statements "
        "are made about the mean vector: its length along the claimed one (sees a wrong scale "
        "best), and its distance from it over all coordinates at once (sees anything else). The "
        "distance's interval is built so that it covers all directions together.",
        "With a μ that is not small the mean belongs to another loss: the last row. Two-sided "
        "estimates have the same mean, since R and -R are equally likely.",
    ),
    Section(
        "Proposition 5.1 when the basis comes from the measured batch",
        ("given_the_batch", "helps", "hurts"),
        "AGZO takes A from the very batch whose loss it measures. Given the batch, Proposition "
        "5.1 still holds with the batch's loss f(·, B) in place of F.",
        "Averaged over batches, A and the gradient are no longer independent, so the mean is "
        "E[∇f(B) A(B)A(B)ᵀ], which is neither ∇F AAᵀ for a fixed A nor E[∇f] E[AAᵀ].",
        "Two batches, equally likely, μ small. Where each batch's gradient lies along its own "
        "strong input direction, an independent batch's basis keeps half of ∇F and the batch's "
        "own basis all of it. Where each batch's gradient lies along the other's strong "
        "direction, the independent basis keeps half again and the batch's own basis nothing.",
        "Proposition 5.1 does not describe AGZO's mean step. In the direction that the paper "
        "argues for (gradients lie along strong inputs) the dependence helps; it is not harmless "
        "in general. The two examples are extremes, built to show it; how large the effect is on "
        "a real model they do not say.",
    ),
    Section(
        "Proposition 5.2: the price of smoothing",
        ("lipschitz_bound", "kink"),
        "Inside the bases, the smoothed gradient is within C μ of the true one.",
        "The gradient is L-Lipschitz. C may be taken as L √D, D = Σ d_out r (our constant: the "
        "gradient moves by at most L μ |Δ|, and E|Δ| ≤ √D).",
        "A log cosh layer, whose L is the largest eigenvalue of XᵀX / tokens. The part of the "
        "estimate whose mean is known, ⟨G, Δ⟩Δ, is taken off, which leaves the bias visible. The "
        "power of μ is the slope between μ = 0.1 and 0.2 on the same directions.",
        "For a loss with three derivatives the bias falls like μ², faster than the bound says: by "
        "symmetry the term in μ averages out. At a kink of the gradient (half the square of relu, "
        "at zero) it really is proportional to μ, 0.40 of our bound. In float32 the limit is not "
        "reached: rounding grows like 1/μ as μ falls.",
    ),
    Section(
        "Corollary 5.3: when nothing else is lost",
        ("spanning",),
        "If the rows of every batch's gradient lie in the span of A, the mean estimate is within "
        "C μ of the true gradient.",
        "A fixed A that spans the rows of the gradient of all batches, for which r "
        "must be at least the rank of those rows together (the rank of all inputs is enough).",
        "A layer whose inputs have rank 2 in every batch, at r = 2 and at r = 1.",
        "With the paper's r = 1 the assumption fails on any batch whose gradient has rank above "
        "one. The bias is then |G(I - AAᵀ)| however small μ is: AGZO is a biased estimator.",
    ),
    Section(
        "Theorem 5.4: how well an estimate points along the gradient",
        ("one_layer_cosines", "whole_network"),
        "For small μ, the expected cosine of the estimate and the gradient is β_D |GA| / |G|: the "
        "price β_D of searching D = d_out r dimensions at random, times the share of the gradient "
        "that the basis keeps.",
        "One layer, μ → 0, no noise in the loss, A orthonormal. For several layers, and dense "
        "parameters such as biases, taken as one long vector the same holds with D summed and A "
        "block by block (ours; `agzo.alignment.expected_cosine`).",
        "Estimates at μ = 10⁻⁶ in float64, so that the finite difference is the slope. The row on "
        "the mean squared error checks (d_out r + 1)|GA|² + |G(I - AAᵀ)|², which AIM-ZO (arXiv "
        "2609.35257) gives and which follows in two lines: ⟨G, Δ⟩Δ has mean GAAᵀ and mean square "
        "(d_out r + 2)|GA|².",
        "The theorem is about one layer perturbed alone. In a step all layers share one number g, "
        "so the sign of one layer's part is decided by all: its cosine with that layer's gradient "
        "has the theorem's size, but is often negative, and its mean is far smaller. Cosines "
        "reported per layer must say which of these they are. The squared error shows why a "
        "direction that keeps much is still a noisy estimate: it is d_out r + 1 times the energy "
        "that is kept.",
    ),
    Section(
        "Corollary 5.5: MeZO, and LOZO read the same way",
        ("mezo", "lozo"),
        "A dense direction keeps all of the gradient and pays β_D with D = d_out d_in.",
        "Standard normal noise in each coordinate. The paper makes no statement about LOZO; the "
        "theorem applies to it, given V, only where V has orthonormal columns.",
        "MeZO in the paper's one-sided form, at μ = 10⁻⁶. LOZO with V kept: at r = 1 a cosine "
        "does not see V's length, so the theorem holds with A = V / |V|. At r = 2 it does not "
        "hold: a narrow layer is built with its gradient along V's weaker direction. At a width "
        "of 1024, VᵀV is nearly a multiple of the identity.",
        "For LOZO on real layers the theorem's value can serve as an approximation.",
    ),
    Section(
        "Lemma 5.6: the price of dimensions",
        ("beta_bounds",),
        "√(2/(πD)) ≤ β_D ≤ √(2/(π(D-1))), and β_D falls strictly: a search in fewer dimensions "
        "points better, by about √(d_in / r) for AGZO against MeZO.",
        "D of at least 2.",
        "`agzo.alignment.beta` on 200,020 dimensions, and the first coordinate of random unit "
        "vectors made from the library's own noise. Beyond the paper: β_D √D falls "
        "too, which follows from β_D β_(D+1) = 2/(πD).",
        "The gain of dimension is real but is paid for by |GA| / |G|: Theorem 5.7.",
    ),
    Section(
        "Theorem 5.7: when AGZO beats MeZO",
        ("leading", "edges"),
        "Write X = VΣUᵀ for a layer's input and C = QᵀV, so that the gradient is G = CΣUᵀ and "
        "B_ii = |c_i|². If the r leading input directions have on average at least the B_ii of "
        "all s, they keep more than r/s of the gradient's energy, and AGZO's expected cosine is "
        "above MeZO's.",
        "The condition on B. The strict inequality needs more: r < s, and for instance the r-th "
        "singular value above the next (the paper's proof takes the singular values as strictly "
        "decreasing). s < n is assumed too; the comparison with MeZO does not need it, because "
        "β_D √D falls (see the lemma).",
        "300 random layers that meet the condition, with the exact leading directions; the first "
        "12 also by the library's estimates, AGZO's own basis and MeZO. Then the edges.",
        "Where no direction leads there is nothing to gain: a share of r/n leaves β_mr √(r/n), "
        "about β_mn, so the fewer dimensions and the smaller share cancel. At r = s, and for "
        "equal singular values with B = I, the first inequality is an equality and the conclusion "
        "about the cosines survives. Where singular values are equal, which directions lead is "
        "open, and for some choices the inequality fails. Where the gradient lives in the input's "
        "weak directions, AGZO is worse than MeZO. That the condition holds is an empirical claim "
        "about models: nothing forces strong inputs to carry large upstream gradients. This is "
        "where the argument bends, so it must be measured.",
    ),
    Section(
        "Algorithm 1: the basis AGZO really uses",
        ("power_iteration",),
        "The theory takes the exact leading directions; AGZO takes K = 3 power iterations from a "
        "random start.",
        "A gap between the singular values r and r + 1: the error shrinks by the ratio of their "
        "squares with each iteration.",
        "600 random starts each on inputs with singular values 1/i, and with equal ones.",
        "With a decaying spectrum little is lost. With a flat one the span found is random, and "
        "holds as much energy of the input as any other; what it keeps of the gradient is then "
        "left to chance.",
    ),
)


IN_SHORT = (
    "No statement was contradicted where its assumptions hold.",
    "AGZO takes its basis from the batch that it measures; Proposition 5.1 takes it as given. "
    "Averaged over batches AGZO's mean step is another one, which can keep more of the gradient or "
    "lose all of it (two examples built to show this).",
    "A basis that does not span the gradient leaves a bias of |G(I - AAᵀ)|, however small μ is. At "
    "r = 1 only a gradient of rank one can avoid it.",
    "Theorem 5.4 is about one layer alone, or all of them together; one layer's part of a "
    "whole-model estimate points far less well.",
    "Theorem 5.7 stands on its condition: gradients in the input's weak directions make AGZO worse "
    "than MeZO.",
)


def text(found: Found) -> str:
    """Return the table for a terminal: a line of numbers under each statement."""
    lines = []
    for section in SECTIONS:
        lines += ["", section.title, "-" * len(section.title)]
        for row in (row for claim in section.claims for row in found.get(claim, ())):
            lines.append(f"{row.name}: {row.says}  [{row.setting}]")
            samples = "" if row.samples is None else f"n {row.samples}"
            numbers = f"claimed {_claim(row):>13}   measured {_number(row.measured):>11}"
            lines.append(f"    {numbers}   {_interval(row):26} {samples:10} {row.verdict}")
    return "\n".join(lines[1:]) + "\n"


def markdown(found: Found, about: Mapping[str, Any]) -> str:
    """Return the page."""
    rows = [row for claim in found.values() for row in claim]
    lines = [
        "# The theory, checked",
        "",
        "Propositions 5.1 and 5.2, Corollary 5.3, Theorem 5.4, Corollary 5.5, Lemma 5.6 and "
        "Theorem 5.7 of AGZO (arXiv 2601.17261, numbers of its first version), each measured on "
        "this library's samplers and estimator, on small layers in float64 whose gradients are "
        "known. Made by `make theory`; nothing on this page is typed by hand but the text.",
        "",
        f"**{summary(rows)}**",
        "",
        _confidence(about),
        "",
        "*In short.*",
        "",
        *(f"- {point}" for point in IN_SHORT),
        "",
        "*Verdicts.* `holds`: the claim lies in the interval (for a bound, the whole interval "
        "respects it). `fails as expected`: an assumption is broken on purpose, and the "
        "measurement shows that the statement needs it. Anything else is an error of the theory "
        "or of the code, and the program exits with 1. A check cannot prove a statement: it says "
        "that no contradiction of the stated size was found on these examples.",
        "",
        "Letters: W (d_out, d_in) a weight, G its gradient, A (d_in, r) its basis, R (d_out, r) "
        "standard normal, Δ = RAᵀ, g the projected gradient, so the estimate is gΔ; |·| is the "
        "Frobenius norm.",
    ]
    for section in SECTIONS:
        lines += [
            "",
            f"## {section.title}",
            "",
            f"**Says.** {section.says}",
            "",
            f"**Needs.** {section.needs}",
            "",
            f"**Checked.** {section.checked}",
            "",
            "| | what is measured | setting | claimed | measured | interval | samples | verdict |",
            "|:--|:--|:--|--:|--:|:--|--:|:--|",
        ]
        for row in (row for claim in section.claims for row in found.get(claim, ())):
            note = f" ({row.note})" if row.note else ""
            samples = "" if row.samples is None else f"{row.samples}"
            cells = [row.name, row.says, row.setting, _claim(row), _number(row.measured)]
            cells += [_interval(row), samples, row.verdict + note]
            lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
        lines += ["", f"**In practice.** {section.practice}"]
    return "\n".join([*lines, "", _made(about)]) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """Count the verdicts in a sentence."""
    holds = sum(row.verdict == "holds" for row in rows)
    fails = sum(row.verdict == "fails as expected" for row in rows)
    bad = [row for row in rows if not row.good]
    said = f"{len(rows)} rows: {holds} hold, {fails} fail as expected"
    return (
        f"{said}, {len(bad)} are not as they should be." if bad else f"{said}, none is otherwise."
    )


def _claim(row: Row) -> str:
    return f"{row.relation} {_number(row.claimed)}"


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return "exact" if not row.tolerance else f"± {row.tolerance:.0e} (rounding)"
    return f"{_number(row.low)} to {_number(row.high)}"


def _number(value: float) -> str:
    return "0" if abs(value) < 1e-12 else f"{value:.4g}"


def _confidence(about: Mapping[str, Any]) -> str:
    percent = {key: f"{100 * about[key]:.6g} %" for key in ("confidence", "precision", "coarse")}
    return (
        f"*Confidence.* All {about['intervals']} intervals hold together with "
        f"{percent['confidence']} confidence: each is made at a level of {about['level']:.2g} "
        f"({about['z']:.2f} standard errors), by Bonferroni and the central limit theorem "
        f"(approximate). *Sample sizes* come from a pilot of {about['pilot']} and the wanted half "
        f"width: {percent['precision']} of the claim for a cosine, {percent['coarse']} for an "
        f"estimate's mean (other choices are in theory.json), at most {about['cap']} samples. An "
        "equality whose interval came out much wider than wanted is called undecided. Rows with "
        "no interval hold nothing random, or list every case."
    )


def _made(about: Mapping[str, Any]) -> str:
    commit, dirty = about["git_commit"], about["git_dirty"]
    state = f"commit {commit[:7]}{' with changes' if dirty else ''}" if commit else "no checkout"
    machine = about["machine"]
    return (
        f"*Made at {state}, seed {about['seed']}, torch {about['versions']['torch']}, "
        f"{machine['device_name']}, {machine['threads']} thread(s), {about['seconds']:.0f} s.*"
    )

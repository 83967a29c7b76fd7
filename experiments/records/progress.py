"""How far a run is: what a checkpoint holds beside the weights and the optimizer's state."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Progress:
    """The part of a run's state that is JSON."""

    run: str | None = None  # id of the configuration whose run this is
    step: int = 0
    evaluated: int = -1  # the last step that was evaluated on dev
    pending: list[float] = field(default_factory=list)  # losses since the last row
    rows: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Any] | None = None  # {"step", "dev"}
    start_dev: dict[str, Any] | None = None  # dev of the untouched model
    last_dev: dict[str, Any] | None = None
    train_seconds: float = 0.0  # in steps alone
    total_seconds: float = 0.0  # evaluation and checkpoints too, loading not
    peak_gib: float = 0.0
    projected_grad: float | None = None  # of the last step that was read
    zeros: list[float] = field(default_factory=list)  # shares of zero ones since the last row
    resumed: list[int] = field(default_factory=list)  # steps at which a run went on
    code: list[dict[str, Any]] = field(default_factory=list)  # {"step", "git_commit", "git_dirty"}
    protected: list[list[int]] = field(
        default_factory=list
    )  # [checkpoint, its best step], newest two

    def ran_by(self, code: dict[str, Any]) -> None:
        """Note the code of the process that begins or goes on here, where it is another one's."""
        if self.step and not self.code:  # a checkpoint of code that did not note it
            self.code.append({"step": 0, "git_commit": None, "git_dirty": None})
        if not self.code or self.code[-1] != {"step": self.code[-1]["step"]} | code:
            self.code.append({"step": self.step} | code)

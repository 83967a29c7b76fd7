"""How the runs of a suite stand on disk, which are needed next, and which cell is chosen.

The choice is the lowest dev loss of a column's grid, once all of it is there, with the learning
rates that were added because the best one lay at an edge (`widen`); evaluation scores
play no part in it.
"""

import statistics
from pathlib import Path
from typing import Any

from experiments.launch.job import LOG, State, look
from experiments.suites.plan import Group, Job, Suite
from experiments.suites.widen import Beyond, beyond


class Standing:
    """The states of all runs of a suite, as they change."""

    def __init__(self, suite: Suite) -> None:
        """Read what is there."""
        self.suite = suite
        self.tried: set[Path] = set()
        self.states = {job.folder: look(job) for group in suite.groups for job in group.jobs}

    def of(self, job: Job) -> State:
        """Return how a run stands; one that a choice added is looked at when first asked for."""
        if job.folder not in self.states:
            self.states[job.folder] = look(job)
        return self.states[job.folder]

    def search(self, group: Group) -> list[Job]:
        """Return the runs of a group's grid: the plan's, and those that its edges asked for."""
        jobs, seed = list(group.search), group.column.seeds[0]
        while self._tried(jobs) and (more := self._beyond(group, jobs).settings):
            jobs += [group.job(group.column.cell(settings), seed) for settings in more]
        return jobs

    def chosen(self, group: Group) -> Job | None:
        """Return the run of the cell with the lowest dev loss.

        None while a cell is not finished, or if all diverged (a diverged one is never chosen).
        """
        return self._best(self.search(group))

    def _tried(self, jobs: list[Job]) -> bool:
        return all(self.of(job).status in ("finished", "diverged") for job in jobs)

    def _best(self, jobs: list[Job]) -> Job | None:
        if not self._tried(jobs):
            return None
        losses = [(dev["loss"], job) for job in jobs if (dev := self.of(job).dev)]
        return min(losses, key=lambda pair: pair[0])[1] if losses else None

    def _beyond(self, group: Group, jobs: list[Job]) -> Beyond:
        """Return what the edges of a grid ask for; all of its runs were tried."""
        best = self._best(jobs)
        planned = [cell.settings for cell in group.column.cells]
        tried = [job.cell.settings for job in jobs]
        settings = None if best is None else best.cell.settings
        return beyond(settings, planned, tried, group.column.widen)

    def hopeless(self, group: Group) -> bool:
        """Return whether every cell of a group's grid diverged."""
        return all(self.of(job).status == "diverged" for job in self.search(group))

    def wanted(self, group: Group) -> list[Job]:
        """Return the runs of a group that are needed as far as one can tell."""
        search = self.search(group)
        best = self._best(search)
        return [*search, *(group.others(best.cell) if best else ())]

    def planned(self, group: Group) -> int:
        """Count the runs of a group, the other seeds of a choice to come among them."""
        rest = 0 if self.hopeless(group) else len(group.column.seeds) - 1
        return len(self.search(group)) + rest

    def missing(self, group: Group) -> int:
        """Count the runs a group still needs."""
        done = [self.of(job).status in ("finished", "diverged") for job in self.wanted(group)]
        return self.planned(group) - sum(done)

    def failed(self, group: Group) -> int:
        """Count the runs of a group that failed, which are not tried again."""
        return sum(self.of(job).status == "failed" for job in self.wanted(group))

    def left(self, group: Group) -> int:
        """Count the runs that can still be done: a failed cell leaves the other seeds no choice."""
        blocked = any(self.of(job).status == "failed" for job in self.search(group))
        seeds = len(group.column.seeds) - 1 if blocked else 0
        return self.missing(group) - self.failed(group) - seeds

    def total_missing(self) -> int:
        """Count the runs that the groups worked on still need."""
        return sum(map(self.missing, self.suite.active))

    def seconds(self, group: Group) -> float | None:
        """Return what a run of a group took, the median of those that are done; None before."""
        took = [self.of(job).seconds for job in self.wanted(group)]
        known = [each for each in took if each is not None]
        return statistics.median(known) if known else None

    def next_job(self) -> Job | None:
        """Return a run to do that was not tried yet, the first table cells first."""
        for group in self.suite.active:
            for job in self.wanted(group):
                if self.of(job).status == "missing" and job.folder not in self.tried:
                    self.tried.add(job.folder)
                    return job
        return None

    def look_at_busy(self) -> bool:
        """Look again at runs that another process held; return whether any has ended since."""
        ended = False
        for group in self.suite.active:
            for job in self.wanted(group):
                if self.of(job).status == "busy" and (now := look(job)).status != "missing":
                    self.states[job.folder] = now
                    ended = True
        return ended

    def choice(self) -> dict[str, Any]:
        """Return the content of choice.json."""
        return {group.name: self._choice(group) for group in self.suite.groups}

    def _choice(self, group: Group) -> dict[str, Any]:
        search = self.search(group)
        best = self._best(search)
        states = [(job.cell, self.of(job)) for job in search]
        cells = [
            {
                "variant": cell.variant, "settings": cell.settings,
                "status": state.status, "dev": state.dev, "error": state.error,
            }
            for cell, state in states
        ]  # fmt: skip
        edges = self._beyond(group, search).edges if self._tried(search) else []
        return {"chosen": best.cell.variant if best else None, "edges": edges, "cells": cells}

    def problems(self) -> list[str]:
        """Return a line for every run that is needed and is not there, with its log."""
        lines = []
        for group in self.suite.active:
            for job in self.wanted(group):
                state = self.of(job)
                searched = job.seed == group.column.seeds[0] and state.status == "diverged"
                if state.status != "finished" and not searched:
                    why = state.error or "not run"
                    lines.append(f"{state.status}: {job.folder}: {why}; log: {job.folder / LOG}")
            if self.hopeless(group):
                lines.append(f"diverged: {group.name}: every cell of its grid; nothing to choose")
        return lines

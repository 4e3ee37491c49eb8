"""The whole build: pictures, autoencoders, bases; each stage in a process of its own.

On a GPU all bases are trained at the same time: steps of small networks leave most of it idle in turns, one
process that draws and checks does not hold up the others, and one that fails takes no other with it. On a CPU
one comes after the other. This process loads no torch: it draws, starts, and waits.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from studio.pocket.build.drawing import draw_files
from studio.pocket.build.files import DIVERGED, NOT_RECORDED, Files, pack_reports
from studio.pocket.build.kinds.table import KINDS

Say = Callable[[str], None]

PICTURES_PER_MINUTE = 400  # of a build one after the other; more minutes, more pictures
FEWEST, MOST, AT_ONCE = 2000, 60_000, 200_000  # captioned pictures; the last on a GPU
MIXED_SHARE, MOST_MIXED = 0.5, 48_000  # pictures for the autoencoders
AUTOENCODER_SHARE = 0.2  # of the time after the first pictures
LAST_SECONDS = 12.0  # kept for the last look and the packing, when there are minutes
PACK_SECONDS = 15.0  # between two packings of the reports
TRIES = 3


@dataclass(frozen=True)
class BuildPlan:
    """What to build.

    Args:
        bases: Names.
        minutes: For everything together; a resumed stage gets what it had left.
        pictures: Captioned ones; 0 = as fits the minutes.
        together: All stages of a kind at once.
        processes: How many draw.
        pack: Folder for packed results; None = none are packed.
        shipped: The autoencoders that ship with the studio instead of new ones.
        further: Bases begin with the weights that ship with the studio; wants its autoencoders, too.
        rate: Times the usual learning rate.
        steps: Of each stage instead of a time, for tests; 0 = by time.
        options: Further options of the workers, for tests.
    """

    bases: tuple[str, ...] = ("pocket",)
    minutes: float = 90.0
    pictures: int = 0
    together: bool = False
    processes: int = 1
    pack: Path | None = None
    shipped: bool = False
    further: bool = False
    rate: float = 1.0
    steps: int = 0
    options: tuple[str, ...] = ()

    @property
    def picture_count(self) -> int:
        """Captioned pictures."""
        by_time = AT_ONCE if self.together else int(self.minutes * PICTURES_PER_MINUTE)
        return self.pictures or max(FEWEST, min(by_time, AT_ONCE if self.together else MOST))

    @property
    def channels(self) -> list[int]:
        """Of the autoencoders that the bases have."""
        return sorted({KINDS[name].channels for name in self.bases})

    @property
    def mixed_count(self) -> int:
        """Pictures for the autoencoders."""
        return min(MOST_MIXED, int(self.picture_count * MIXED_SHARE))


def needed(base: str) -> str:
    """The stage that a base needs: its autoencoder."""
    return f"autoencoder-{KINDS[base].channels}"


@dataclass
class _Job:
    """A stage that runs."""

    stage: str
    until: float
    process: subprocess.Popen[bytes]
    options: list[str]
    tries: int = 1
    rate: float = 1.0
    plain: bool = False


@dataclass
class _Builder:
    out: Path
    plan: BuildPlan
    say: Say
    resume: bool
    failed: list[str] = field(default_factory=list)

    def start(self, stage: str, until: float) -> _Job | None:
        """A process for the stage; None when it is done already."""
        if self.resume and Files(self.out).finished(stage).exists():
            self.say(f"{stage}: done already")
            return None
        options = ["--resume"] if self.resume else []
        options += ["--rate", str(self.plan.rate)]
        return _Job(stage, until, self._popen(stage, until, options), options, rate=self.plan.rate)

    def wait(self, jobs: list[_Job | None]) -> None:
        """Until all have ended; those that fail are started again in another way, at most twice."""
        left = [job for job in jobs if job]
        packed = time.monotonic()
        while left:
            time.sleep(0.2)
            for job in list(left):
                code = job.process.poll()
                if code is None or (code and self._again(job, code)):
                    continue
                left.remove(job)
                if code:
                    self.failed.append(job.stage)
                    self._stop_what_needs(job.stage, left)
            if self.plan.pack and time.monotonic() - packed > PACK_SECONDS:
                pack_reports(self.out, list(self.plan.bases), self.plan.pack / "reports.tar")
                packed = time.monotonic()

    def usable(self) -> list[str]:
        """Bases whose autoencoder did not fail."""
        return [name for name in self.plan.bases if needed(name) not in self.failed]

    def _stop_what_needs(self, stage: str, left: list[_Job]) -> None:
        for job in [job for job in left if job.stage in KINDS and needed(job.stage) == stage]:
            job.process.terminate()
            job.process.wait()
            left.remove(job)

    def _again(self, job: _Job, code: int) -> bool:
        """Whether a failed stage got another process."""
        if job.tries >= TRIES:
            self.say(f"{job.stage}: given up (exit code {code})")
            return False
        job.tries += 1
        if code == DIVERGED:
            job.rate /= 2
        else:
            job.plain = True
        reason = {NOT_RECORDED: "could not be recorded", DIVERGED: "diverged"}.get(
            code, f"ended with code {code}"
        )
        self.say(f"{job.stage}: {reason}; tried again, rate x {job.rate}{', plain' if job.plain else ''}")
        options = ["--resume", "--rate", str(job.rate), *(["--plain"] if job.plain else [])]
        job.process = self._popen(job.stage, job.until, options)
        return True

    def _popen(self, stage: str, until: float, options: list[str]) -> subprocess.Popen[bytes]:
        plan = self.plan
        command = [sys.executable, "-u", "-m", "studio.pocket.build.worker", stage, "--out", str(self.out)]
        command += ["--steps", str(plan.steps)] if plan.steps else ["--until", f"{until:.1f}"]
        command += ["--pack", str(plan.pack)] if plan.pack else []
        command += ["--shipped"] if plan.shipped else []
        command += ["--further"] if plan.further else []
        return subprocess.Popen([*command, *plan.options, *options])


def build(out: Path, plan: BuildPlan, say: Say, *, resume: bool = False) -> list[str]:
    """Train everything from nothing into `out`, a folder for each base.

    Returns:
        Names of bases that failed; the others are complete.
    """
    begun = time.time()
    out.mkdir(parents=True, exist_ok=True)
    if plan.pack:
        plan.pack.mkdir(parents=True, exist_ok=True)
    end = begun + plan.minutes * 60 - (LAST_SECONDS if plan.minutes > 3 else 0.0)
    builder = _Builder(out, plan, say, resume)
    mixed = 0 if plan.shipped else plan.mixed_count
    say(f"{mixed} and {plan.picture_count} pictures, {', '.join(plan.bases)}")
    if mixed:
        draw_files(out, "mixed", mixed, say, processes=plan.processes)
    if plan.together:
        _at_once(builder, end)
    else:
        draw_files(out, "captioned", plan.picture_count, say, processes=plan.processes)
        _one_by_one(builder, end)
    if plan.pack:
        pack_reports(out, list(plan.bases), plan.pack / "reports.tar")
    say(f"done after {(time.time() - begun) / 60:.1f} minutes")
    usable = builder.usable()
    return [name for name in plan.bases if name not in usable or name in builder.failed]


def _one_by_one(builder: _Builder, end: float) -> None:
    """For a CPU."""
    plan, now = builder.plan, time.time()
    for count in plan.channels:
        seconds = AUTOENCODER_SHARE * (end - now) / len(plan.channels)
        builder.wait([builder.start(f"autoencoder-{count}", time.time() + seconds)])
    names, now = builder.usable(), time.time()
    shares = sum(KINDS[name].share for name in names)
    for name in names:
        seconds = KINDS[name].share / shares * (end - now)
        builder.wait([builder.start(name, time.time() + seconds)])


def _at_once(builder: _Builder, end: float) -> None:
    """For a GPU: autoencoders while the captioned pictures are drawn, bases when these have become latents.

    The bases' processes start early, so that they have read their captions when the latents are there.
    """
    plan, now = builder.plan, time.time()
    ready = now + AUTOENCODER_SHARE * (end - now)
    jobs = [builder.start(f"autoencoder-{count}", ready) for count in plan.channels]
    drawing = max(1, plan.processes - len(jobs))
    draw_files(builder.out, "captioned", plan.picture_count, builder.say, processes=drawing)
    jobs += [builder.start(name, ready + KINDS[name].together * (end - ready)) for name in plan.bases]
    builder.wait(jobs)

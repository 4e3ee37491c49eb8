"""A workspace with something of everything in it, for page tests and screenshots; no training needed.

Pictures are the demo's own; runs have the files a trainer writes. `python -m tests.app.filled HOME` fills
one.
"""

import io
import json
import random
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
from PIL import Image as Pillow
from PIL import ImageFilter
from safetensors.numpy import save_file

from registry.hashing import hash_adapter
from registry.records import (
    Adapter,
    AdapterUse,
    Base,
    Checkpoint,
    Dataset,
    FileState,
    Job,
    JobKind,
    JobState,
    Run,
    RunState,
    Sample,
    SavedFilter,
    now,
)
from studio.datasets.ingest import create_dataset, images_of
from studio.imports.report import ImportReport
from studio.pocket.pictures import TRIGGERS, demo_set
from studio.runs.frozen import manifest_item, run_images
from studio.workspace import Workspace
from trainers.recipe import preset_by_name, recipe_hash
from trainers.rundir import LOG, METRICS, PREVIEW_INDEX, PROBES, RunDir, RunEnv, Status

PROMPTS = ("a red circle on a white background", "two blue stars above a green square")
STEPS = 400
EVERY = 25  # steps between checkpoints; most were pruned
HURRIED = "zibbo, lower rate"
TO_Q = "attentions.0.transformer_blocks.0.attn1.to_q"
BLOCKS = (*(f"down_blocks.{n}" for n in range(3)), "mid_block", *(f"up_blocks.{n}" for n in (1, 2, 3)))
WIDTHS = {"down_blocks.1": 64, "mid_block": 96, "up_blocks.1": 64}  # of the pocket base; the others have 32
TEXT_WIDTH = 96
Q_PROJ = "text_encoder.text_model.encoder.layers.{}.self_attn.q_proj"
NAN = (
    "step 120: the loss is not finite (pictures: 07.png). Lower optimizer.lr, set train.precision to bf16 or "
    "fp32, or look at these pictures."
)

IMPORTED = ImportReport(
    phase="done",
    files=14,
    listed=9,
    known=2,
    hashed=9,
    counts={"duplicates": 1, "bad": 2, "unidentified": 1},
    duplicates=[("/home/me/loras/ink (1).safetensors", "ink wash")],
    bad=[
        ("/home/me/loras/frost.safetensors", "is cut off: 7 bytes are missing. Get it again."),
        ("/home/me/loras/old.ckpt", "is a pickle, which can run code. Ask for a .safetensors file."),
    ],
    unidentified=[("/home/me/loras/x.safetensors", "no family has layers of these sizes")],
)


def fill(ws: Workspace, *, adapters: int = 9) -> None:
    """Three data sets, five runs in different states, adapters, samples, one failed sample job."""
    sets = {kind: _dataset(ws, kind) for kind in ("style", "character", "concept")}
    finished = _run(ws, "neon signs", sets["style"], RunState.FINISHED, STEPS, hours=26)
    ws.catalog.pick(finished.id, 300, "Its loss on 2 held-out pictures is the lowest, 0.1310.", "probe")
    _run(ws, "zibbo the robot", sets["character"], RunState.FAILED, 120, hours=5, reason=NAN)
    _run(ws, HURRIED, sets["character"], RunState.RUNNING, 260, hours=0)
    _run(ws, "lantern", sets["concept"], RunState.QUEUED, 0, hours=0)
    _run(ws, "neon, first try", sets["style"], RunState.STOPPED, 90, hours=50)
    made = [_adapter(ws, index, finished if index == 0 else None) for index in range(adapters)]
    for index in range(3):
        _sample(ws, made[: index % 2 + 1] if index else [], index)
    ws.catalog.add(
        Job(
            kind=JobKind.SAMPLE,
            state=JobState.FAILED,
            subject_id=ws.catalog.list(Sample)[0].id,
            error="adapter lantern glow: is for sd21, base pocket is sd15. Choose a base that fits.",
        )
    )
    ws.catalog.add(SavedFilter(name="drawings, rated", query={"tags": ["drawing"], "min_rating": 3}))
    ws.catalog.add(
        Job(
            kind=JobKind.IMPORT,
            state=JobState.DONE,
            subject_id="import",
            result=IMPORTED.to_dict(),
        )
    )


def many_adapters(ws: Workspace, count: int) -> None:
    """`count` rows without files: for timing."""
    words = ("ink", "glow", "paper", "chalk", "rust", "velvet", "frost", "moss", "ember", "slate")
    ws.catalog.add_all(
        [
            Adapter(
                name=f"{words[i % 10]} {words[i // 10 % 10]} {i:05d}",
                tensor_sha256=f"{i:064x}",
                file_sha256=f"{i:064x}",
                path=f"adapters/{i}.safetensors",
                family="sd15",
                rank=8,
                alpha=8.0,
                trigger_words=(words[i % 10],),
                tags=(words[i % 7],),
                rating=i % 6,
                origin="import",
                created_at=now() - timedelta(minutes=i),
                preview=f"adapters/{i}.png",
            )
            for i in range(count)
        ]
    )


def png(picture: Pillow.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _dataset(ws: Workspace, kind: str) -> Dataset:
    uploads: list[tuple[str, bytes]] = []
    for index, (picture, caption) in enumerate(demo_set(kind, 14, 1)):
        uploads.append((f"{index:02d}.png", png(picture)))
        if index != 5:  # one picture without a caption, for the doctor
            uploads.append((f"{index:02d}.txt", caption.encode()))
    names = {"style": "neon signs", "character": "zibbo", "concept": "lanterns"}
    return create_dataset(ws, names[kind], uploads, trigger=TRIGGERS[kind]).dataset


def _run(
    ws: Workspace, name: str, dataset: Dataset, state: RunState, step: int, *, hours: float, reason: str = ""
) -> Run:
    base = ws.catalog.get(Base, "pocket")
    goal = {"neon signs": "style", "zibbo": "character"}.get(dataset.name, "concept")
    recipe = preset_by_name(f"pocket-{goal}")
    started = now() - timedelta(hours=hours, minutes=6)
    run = ws.catalog.add(
        Run(
            name=name,
            state=state,
            reason=reason,
            family="sd15",
            goal=goal,
            base_id=base.id,
            dataset_id=dataset.id,
            recipe=recipe.model_dump(mode="json"),
            recipe_hash=recipe_hash(recipe),
            dataset_hash=dataset.content_hash,
            base_hash=base.weight_hash,
            seed=0,
            step=step,
            steps=STEPS,
            created_at=started,
            started_at=started,
            ended_at=None if state in {RunState.RUNNING, RunState.QUEUED} else now() - timedelta(hours=hours),
        )
    )
    items = [manifest_item(ws, ws.run_dir(run.id).path, image) for image in images_of(ws, dataset)]
    ws.catalog.lineage.add_run_images(run.id, run_images(run.id, items))
    env = RunEnv(
        run_id=run.id,
        name=name,
        family="sd15",
        base_location=base.location,
        base_kind=base.kind,
        base_hash=base.weight_hash,
    )
    ws.run_dir(run.id).path.mkdir(parents=True)
    ws.run_dir(run.id).write_env(env)
    if step:
        _run_files(ws.run_dir(run.id), run, goal)
        for at in range(100, step + 1, 100):
            ws.catalog.add(
                Checkpoint(
                    run_id=run.id,
                    step=at,
                    path=f"runs/{run.id}/checkpoints/step-{at:06d}",
                    loss=0.2 - at / 4000,
                    metrics=_probed(run, at),
                )
            )
    return run


def _run_files(folder: RunDir, run: Run, goal: str) -> None:
    (folder.path / "previews").mkdir()
    rng = random.Random(run.name)
    lines = []
    for step in range(1, run.step + 1):
        rate = 3e-3 * min(1.0, step / 20) * (0.5 + 0.5 * np.cos(np.pi * step / STEPS))
        loss = 0.11 + 0.13 * np.exp(-step / 90) + rng.gauss(0, 0.018)
        found = {"step": step, "loss": float(loss), "lr": float(rate)}
        lines.append(json.dumps(found | (_probed(run, step) if step % EVERY == 0 else {})))
    folder.file(METRICS).write_text("\n".join(lines) + "\n")
    folder.file(LOG).write_text(f"loading the base\ncaching 14 pictures\nstep 1 of {STEPS}\n")
    with folder.file(PREVIEW_INDEX).open("w") as index:
        for number, prompt in enumerate(PROMPTS):
            end, start = demo_set(goal, 2, number)[0][0], demo_set("concept", 3, number + 5)[2][0]
            for step in [-1, *range(0, run.step + 1, 50)]:
                name = f"base-p{number}.png" if step < 0 else f"step-{step:06d}-p{number}.png"
                blend = Pillow.blend(start, end, 0 if step < 0 else min(1, step / 300))
                blend.filter(ImageFilter.GaussianBlur(0.4)).save(folder.path / "previews" / name)
                line = {"step": max(step, 0), "prompt": prompt, "file": f"previews/{name}", "base": step < 0}
                index.write(json.dumps(line) + "\n")
    folder.write_status(
        Status(
            state="running" if run.state is RunState.RUNNING else "finished",
            phase="training",
            step=run.step,
            steps=STEPS,
            loss=0.1432,
            seconds_per_step=0.41,
            seconds_left=0.41 * (STEPS - run.step),
            peak_memory=1_340_000_000,
            best_step=_best(run) if run.step > 100 else None,
            held_out=["03.png", "11.png"],
            time=time.time(),
        )
    )


def _best(run: Run) -> int:
    return 100 if run.name == HURRIED or run.step < 300 else 300


def _probed(run: Run, step: int) -> dict[str, float]:
    """What the probe found: the loss on held-out pictures turns at the best step."""
    return {
        PROBES["train"]: 0.118 + 0.09 * float(np.exp(-step / 110)),
        PROBES["held_out"]: 0.131 + 0.6e-6 * (step - _best(run)) ** 2,
        PROBES["prior"]: 1.9e-5 * step,
    }


def _adapter(ws: Workspace, index: int, run: Run | None) -> Adapter:
    names = (
        "neon signs",
        "ink wash",
        "zibbo",
        "paper cut",
        "lantern glow",
        "blueprint",
        "chalk",
        "old postcard",
        "<b>bold</b> **name** :smile:",
    )
    name = names[index] if index < len(names) else f"study {index}"
    path = ws.home / "adapters" / f"demo{index}.safetensors"
    rng = np.random.default_rng(index)
    modules = {f"unet.{block}.{TO_Q}": WIDTHS.get(block, 32) for block in BLOCKS}
    modules |= {Q_PROJ.format(layer): TEXT_WIDTH for layer in range(12 if index == 2 else 0)}
    tensors = {
        f"{module}.lora_{side}.weight": rng.normal(0, 0.02 + 0.002 * place, shape).astype(np.float32)
        for place, (module, width) in enumerate(modules.items())
        for side, shape in (("A", (8, width)), ("B", (width, 8)))
    }
    save_file(tensors, str(path))
    hashes = hash_adapter(path)
    kind = ("style", "character", "concept")[index % 3]
    preview = ws.home / "adapters" / f"demo{index}.png"
    demo_set(kind, 1, index + 3)[0][0].save(preview)
    return ws.catalog.add(
        Adapter(
            name=name,
            tensor_sha256=hashes.tensor_sha256,
            file_sha256=hashes.sha256,
            path=ws.relative(path),
            size=path.stat().st_size,
            family={4: "sd21", 7: ""}.get(index, "sd15"),
            rank=8,
            alpha=8.0,
            targets=("unet", "text_encoder") if index == 2 else ("unet",),
            trigger_words=(TRIGGERS[kind],),
            tags=("drawing", "night")[: index % 3],
            note="Best between 0.7 and 0.9." if index == 0 else "",
            rating=(5, 4, 0, 3)[index % 4],
            favourite=index % 3 == 0 and index < 6,
            licence="CC BY 4.0" if index == 0 else "",
            file_state=FileState.MISSING if index == 6 else FileState.OK,
            origin="run" if run else "import",
            run_id=run.id if run else "",
            step=STEPS if run else 0,
            base_id=run.base_id if run else "",
            preview=ws.relative(preview),
            created_at=now() - timedelta(hours=index * 9),
            metadata={"ss_network_dim": "8"},
        )
    )


def _sample(ws: Workspace, adapters: list[Adapter], index: int) -> Sample:
    base = ws.catalog.get(Base, "pocket")
    request = {
        "base": base.id,
        "adapters": [{"id": a.id, "weight": 0.8, "text_weight": None} for a in adapters],
        "prompt": f"{PROMPTS[index % 2]}, neonsign",
        "negative": "",
        "steps": 20,
        "cfg": 5.0,
        "seed": 7 + index,
        "width": 64,
        "height": 64,
        "scheduler": "default",
        "count": 4,
    }
    uses = tuple(AdapterUse(adapter_id=a.id, weight=0.8, tensor_sha256=a.tensor_sha256) for a in adapters)
    sample = ws.catalog.add(
        Sample(base_id=base.id, request=request, adapters=uses, created_at=now() - timedelta(hours=index))
    )
    folder = ws.home / "samples" / sample.id
    folder.mkdir(parents=True)
    files = []
    for number, (picture, _) in enumerate(demo_set("style" if adapters else "concept", 4, index)):
        picture.save(folder / f"{number:03d}.png")
        files.append(ws.relative(folder / f"{number:03d}.png"))
    ws.catalog.update(Sample, sample.id, files=tuple(files))
    return replace(sample, files=tuple(files))


if __name__ == "__main__":
    fill(Workspace.open(Path(sys.argv[1])))

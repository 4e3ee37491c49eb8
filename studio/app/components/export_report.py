"""What was proven of a written file: a table of programs, and what each does not find."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import streamlit as st

from registry.records import Adapter
from studio.app import shell
from studio.app.words import ago, md, plural, printable

VERDICTS = {"loads": "yes", "partly": "in part", "no": "no"}
MISSING = 40  # names that are listed for each program


def proof(report: Mapping[str, Any]) -> None:
    """How exact the file is, the table of programs, what is missing, and remarks; `report` as JSON types."""
    if report.get("modules"):
        done = f"{report['matched']} of {report['modules']} parts read back, "
        st.markdown(f":green[:material/verified:] {done}{exactness(report['worst_error'])}")
    programs(report.get("tools") or ())
    for line in report.get("notes") or ():
        st.caption(md(line))


def programs(tools: Sequence[Mapping[str, Any]]) -> None:
    """One row a program; the parts that it does not find are folded."""
    if not tools:
        return
    rows = [
        {
            "Program": md(tool["tool"]),
            "Loads it": VERDICTS.get(tool["verdict"], "unknown"),
            "Parts": f"{tool['matched']} of {tool['modules']}",
            "Off by": off_by(tool["worst_error"]) if tool["matched"] else "",
        }
        for tool in tools
    ]
    st.table(rows, border="horizontal", hide_index=True)
    reasons: dict[str, list[str]] = {}
    for tool in tools:
        if note := str(tool.get("note") or ""):
            reasons.setdefault(note, []).append(tool["tool"])
    for note, names in reasons.items():
        st.caption(f"{md(', '.join(names))}: {md(note)}")
    without = [tool for tool in tools if tool.get("missing")]
    if without:
        with st.expander(f"Parts that {plural(len(without), 'program')} will not find"):
            for tool in without:
                missing = tool["missing"]
                st.caption(f"{md(tool['tool'])}: {plural(len(missing), 'part')}")
                more = [f"and {len(missing) - MISSING} more"] if len(missing) > MISSING else []
                st.code(printable("\n".join([*missing[:MISSING], *more])), language=None, height=140)


def exported(adapter: Adapter) -> None:
    """Files that were written from it before, each with its table."""
    from studio.exports import exports_of

    found = exports_of(shell.workspace(), adapter)
    if not found:
        return
    with st.expander(f"Exported: {plural(len(found), 'file')}", icon=":material/ios_share:"):
        st.table([_row(item) for item in found], border="horizontal", hide_index=True)
        chosen = found[0]
        if len(found) > 1:
            names = {item["id"]: f"{printable(Path(item['path']).name)}, {_for(item)}" for item in found}
            key = st.selectbox("Programs that load", list(names), format_func=names.__getitem__)
            chosen = next(item for item in found if item["id"] == key)
        proof(chosen["report"])


def _row(item: Mapping[str, Any]) -> dict[str, str]:
    return {
        "Written": ago(datetime.fromisoformat(item["created_at"])),
        "File": md(Path(item["path"]).name),
        "For": md(_for(item)),
        "Parts": f"{item['report']['matched']} of {item['report']['modules']}",
        "": "" if item["present"] else "not there any more",
    }


def _for(item: Mapping[str, Any]) -> str:
    return f"{item['layout']}, {item['dtype']}" + (", published" if item["publish"] else "")


def exactness(error: float) -> str:
    """How far the file is from the adapter, in words."""
    return "each exactly as it was" if error == 0 else f"each off by {off_by(error)} at most"


def off_by(error: float) -> str:
    """A relative error as people read it."""
    if error == 0:
        return "nothing"
    return f"{error:.2%}" if error >= 1e-4 else "less than 0.01%"

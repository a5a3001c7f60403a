"""`hsmkms jobs`: what ran without being asked, and what is due."""

from __future__ import annotations

from hsmkms.cli.local import JsonOption, rooms, show


def jobs(json: JsonOption = False) -> None:
    """Show the last run of each background job, and how much is due now."""
    with rooms() as here:
        due = here.services.jobs.due() | {
            "import_tokens": here.services.imports.count_expired(),
            "webhooks": here.services.webhooks.count_due(),
        }
        runs = {run.name: run for run in here.services.jobs.runs()}
        rows = []
        for name, count in due.items():
            run = runs.get(name)
            rows.append(
                {
                    "job": name,
                    "due": count,
                    "last run": None if run is None else run.ended_at,
                    "by": None if run is None else run.holder,
                    "changed": None if run is None else run.done,
                    "failed": None if run is None else run.failed,
                }
            )
        show(rows, json)

"""``world-models storage check``, ``gc`` and ``copy``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipeline.base.formatting import counted
from pipeline.cli.arguments import FORMATTER, READ_HELP, RUN_DIR_HELP, positive, run_dir, written_dir
from pipeline.data.artifacts import EVOLUTION
from pipeline.storage.saved_config import saved_config

if TYPE_CHECKING:
    from pipeline.cli.arguments import Commands


def add_parser(commands: Commands) -> None:
    """Add ``storage``."""
    text = "check, clean up or copy a run directory"
    storage = commands.add_parser("storage", help=text, description=text, formatter_class=FORMATTER)
    actions = storage.add_subparsers(dest="action", required=True, metavar="ACTION")
    text = "read everything and verify manifests, records, sizes, checksums and row counts; exit code 1 on damage"
    check = actions.add_parser("check", help=text, description=text)
    check.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=READ_HELP)
    text = "list unreferenced objects and old checkpoints; with --delete, remove them"
    gc = actions.add_parser("gc", help=text, description=text)
    gc.add_argument("run_dir", metavar="RUN_DIR", type=run_dir, help=RUN_DIR_HELP)
    gc.add_argument("--delete", action="store_true", help="remove the listed objects; takes the run's lease")
    gc.add_argument(
        "--keep",
        type=positive,
        metavar="N",
        help="number of checkpoints to keep per stage, at least 1 (default: as in the run's config)",
    )
    text = "copy a run to another location and verify every byte; run it again to resume an interrupted copy"
    copy = actions.add_parser("copy", help=text, description=text)
    copy.add_argument("source", metavar="FROM", type=run_dir, help=f"{READ_HELP}; to copy from")
    copy.add_argument("target", metavar="TO", type=written_dir, help=f"{RUN_DIR_HELP}; to copy to")
    copy.add_argument(
        "--results",
        action="store_true",
        help="copy only the config, the test episodes and the history of the evolution, about 100 KB, which `compare` "
        "reads; FROM may also be a study, of which the evaluated runs are copied",
    )
    storage.set_defaults(perform=_storage)


def _storage(options: argparse.Namespace) -> int:
    from pipeline.storage import maintenance
    from pipeline.storage.checkpoints import KEEP
    from pipeline.storage.run_dir import open_store, require_writable
    from pipeline.storage.session_notes import lease_for

    if options.action == "copy":
        from pipeline.storage.copying import copy_run

        if options.results:
            return _copy_results(options.source, options.target)
        source, target = open_store(options.source), open_store(options.target)

        print(f"{copy_run(source, target):,} objects are in {target.locate()}, verified")
        return 0
    store = open_store(options.run_dir)
    if options.action == "check":
        found = maintenance.check_run(store)
        print("\n".join(maintenance.check_lines(found, store)))
        return 1 if found.problems else 0
    if options.delete:
        require_writable(options.run_dir)
    config = saved_config(store)
    by_prefix = {EVOLUTION: config.evolve.keep_checkpoints} if options.keep is None else {}
    keep = maintenance.checkpoints_to_keep(by_prefix, options.keep or KEEP)
    if options.delete:
        with lease_for(config.storage, store, "storage gc") as fenced:
            garbage = maintenance.find_garbage(fenced, keep)
            maintenance.remove_garbage(fenced, garbage)
    else:
        garbage = maintenance.find_garbage(store, keep)
    print("\n".join(maintenance.garbage_lines(garbage, store, deleted=options.delete)))
    return 0


def _copy_results(source_dir: str, target_dir: str) -> int:
    from pipeline.config.study import saved_study
    from pipeline.sharing.results import copy_results
    from pipeline.storage.run_dir import open_store
    from pipeline.studies.plan import STUDY, trials_of
    from pipeline.studies.trials import is_evaluated, none_evaluated_error

    source, target = open_store(source_dir), open_store(target_dir)
    if not source.exists(STUDY):
        copy_results(source, target)
        print(f"the results are in {target.locate()}: world-models compare {target.locate()}")
        return 0
    trials = trials_of(saved_study(source.read(STUDY).decode(), source.locate(STUDY)))
    evaluated = [trial.folder for trial in trials if is_evaluated(trial, source.locate())]
    if not evaluated:
        raise none_evaluated_error(source.locate(), "finish one first")
    for folder in evaluated:
        copy_results(open_store(f"{source.locate()}/{folder}"), open_store(f"{target.locate()}/{folder}"))
    target.write(STUDY, source.read(STUDY))
    print(
        f"the results of {len(evaluated)} of {counted(len(trials), 'run')} are in {target.locate()}: "
        f"world-models compare {target.locate()}"
    )
    return 0

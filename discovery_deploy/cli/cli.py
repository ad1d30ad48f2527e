"""The command `discovery-deploy`: arguments, progress and exit codes.

Standard output carries only what a script would read; progress and errors go to standard error.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from discovery_deploy import __version__
from discovery_deploy.bench import campaign, request_counts, smoke
from discovery_deploy.cli import box_commands, commands, doctor, patch_commands
from discovery_deploy.cli.progress import ConsoleAnnouncer
from discovery_deploy.driver import bookings, opening, smoke_acts
from discovery_deploy.driver.driver import Driver
from discovery_deploy.driver.phases import Phase
from discovery_deploy.driver.testbed import Testbed
from discovery_deploy.enos import enos_import
from discovery_deploy.experiment import config
from discovery_deploy.hosts.registry import PROVIDERS, provider_named
from discovery_deploy.software import cache, stack
from discovery_deploy.system import interruption, process_settings
from discovery_deploy.system.errors import (
    EXIT_BUG,
    EXIT_STATE,
    EXIT_TESTBED,
    DiscoveryError,
    StateError,
    machine_refusal,
)
from discovery_deploy.testbeds import g5k_request

app = typer.Typer(
    name="discovery-deploy",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="From a file describing a distributed OpenStack experiment to a report that can be believed.",
    epilog="Exit codes: 2 experiment file, 3 testbed, 4 playbook, 5 measurement not valid, 6 state or lock, 70 bug.",
)

cache_app = typer.Typer(no_args_is_help=True, help="What was built once for all experiments of this machine.")
app.add_typer(cache_app, name="cache")
app.add_typer(patch_commands.app, name="patch")
app.add_typer(box_commands.app, name="box")

File = Annotated[Path, typer.Argument(metavar="FILE", help="The experiment file.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--workspace",
        "-w",
        metavar="DIR",
        help="Where state and results go.  [default: ./results/<name>]",
        show_default=False,
    ),
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print every step on a line of its own.")]
Named = Annotated[
    str | None,
    typer.Option(
        "--experiment",
        "-e",
        metavar="NAME",
        show_default=False,
        help="Experiment file, workspace folder, or name.  [default: the only one in ./results]",
    ),
]
SettingLabel = Annotated[
    str | None,
    typer.Option(
        "--setting",
        "-s",
        metavar="LABEL",
        help="Which setting of the campaign.  [default: the first]",
        show_default=False,
    ),
]

TakeOver = Annotated[
    bool, typer.Option("--take-over", help="Take the experiment's hosts from the workspace that reserved them.")
]

console = Console(stderr=True)


def _announcer(verbose: bool) -> ConsoleAnnouncer:
    return ConsoleAnnouncer(console, verbose)


@contextmanager
def _driver(
    file: Path, folder: Path | None, verbose: bool, retry_invalid: bool = False, take_over: bool = False
) -> Iterator[Driver]:
    """The driver of an experiment file, with its workspace locked."""
    opened = opening.open_experiment(file)
    workspace = opening.workspace_of(opened, folder)
    announce = _announcer(verbose)
    with workspace.lock():
        code = opening.code_resolver(opened, announce.line)
        opening.check_code(opened, code)
        opening.keep_source(workspace, opened)
        provider = provider_named(opened.experiment.provider.type)
        testbed = Testbed(opened.experiment, workspace, provider, announce, take_over, code)
        try:
            yield Driver(testbed, opened.source, retry_invalid, opened.tasks)
        except KeyboardInterrupt:
            workspace.note("stopped", error="interrupted", what=[])
            raise
        except DiscoveryError as error:
            workspace.note("stopped", error=type(error).__name__, what=str(error).splitlines()[:3])
            raise
        finally:
            announce.stop()


@app.command()
def check(file: File) -> None:
    """Check an experiment file, its sources and patches; touches no host, reports all mistakes at once."""
    opened = opening.open_experiment(file)
    announce = _announcer(False)
    try:
        opening.check_code(opened, opening.code_resolver(opened, announce.line))
    finally:
        announce.stop()
    experiment = opened.experiment
    settings, runs = opening.size(experiment)
    console.print(
        f"{file}: well: {len(experiment.sites)} sites, {settings} settings, {runs} runs",
        highlight=False,
        soft_wrap=True,
    )
    sys.stdout.write(bookings.request_text(campaign.settings(experiment)))


@app.command()
def run(
    file: File,
    workspace: Folder = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be done; do nothing.")] = False,
    retry_invalid: Annotated[bool, typer.Option(help="Repeat runs that ended but were not valid.")] = False,
    release: Annotated[bool, typer.Option("--release", help="Give the hosts back at the end.")] = False,
    take_over: TakeOver = False,
    verbose: Verbose = False,
) -> None:
    """Do all of it: reserve, prepare, deploy, constrain, verify, bench, report. Run again to go on after a stop."""
    with _driver(file, workspace, verbose, retry_invalid, take_over) as driver:
        if dry_run:
            sys.stdout.write(commands.dry_run(driver))
            return
        driver.bench()
        driver.collect()
        index = driver.report()
        if release:
            driver.testbed.release()
        sys.stdout.write(commands.summary(driver))
        sys.stdout.write(f"report: {index}\n")
        driver.raise_when_not_valid()


def _phase_command(phase: Phase, text: str) -> None:
    def command(file: File, setting: SettingLabel = None, workspace: Folder = None, verbose: Verbose = False) -> None:
        with _driver(file, workspace, verbose) as driver:
            chosen = commands.setting_named(driver, setting)
            report = driver.testbed.bring_to(chosen, phase)
            if phase == "verify":
                report = report or driver.testbed.verify(chosen.experiment)
                sys.stdout.write(commands.wan_table(report, chosen.experiment.network.verify))
                commands.raise_on_problems(report)

    command.__doc__ = text
    app.command(name=phase)(command)


@app.command()
def reserve(
    file: File,
    setting: SettingLabel = None,
    workspace: Folder = None,
    take_over: TakeOver = False,
    verbose: Verbose = False,
) -> None:
    """Obtain the hosts, and start again those that died."""
    with _driver(file, workspace, verbose, take_over=take_over) as driver:
        driver.testbed.bring_to(commands.setting_named(driver, setting), "reserve")


_phase_command("prepare", "Put the software on every host (after reserve, if that is stale).")
_phase_command("deploy", "Deploy OpenStack for one setting (after the phases before it, where stale).")
_phase_command("constrain", "Shape the WAN of one setting (after the phases before it, where stale).")
_phase_command("verify", "Measure the WAN of one setting: asked against measured, on standard output.")


@app.command(name="smoke")
def smoke_command(file: File, setting: SettingLabel = None, workspace: Folder = None, verbose: Verbose = False) -> None:
    """Try one setting's deployment: a server at every site, at all at once, and with a site cut off from the others."""
    with _driver(file, workspace, verbose) as driver:
        record = driver.smoke(commands.setting_named(driver, setting))
        sys.stdout.write(smoke.table(record))
        smoke_acts.raise_on_problems(record)


@app.command()
def count(file: File, setting: SettingLabel = None, workspace: Folder = None, verbose: Verbose = False) -> None:
    """Count what each step of the scenarios asks of the databases of one setting's deployment, on the wire."""
    with _driver(file, workspace, verbose) as driver:
        record = driver.count_requests(commands.setting_named(driver, setting))
        sys.stdout.write(request_counts.table(record))


@app.command()
def bench(
    file: File,
    workspace: Folder = None,
    retry_invalid: Annotated[bool, typer.Option(help="Repeat runs that ended but were not valid.")] = False,
    verbose: Verbose = False,
) -> None:
    """Do the campaign's runs that have no result yet (with the phases before them, where stale)."""
    with _driver(file, workspace, verbose, retry_invalid) as driver:
        driver.bench()
        driver.collect()
        driver.raise_when_not_valid()


@app.command()
def report(file: File, workspace: Folder = None, verbose: Verbose = False) -> None:
    """Write the report from the runs that are there; its path goes to standard output."""
    with _driver(file, workspace, verbose) as driver:
        sys.stdout.write(f"{driver.report()}\n")


@app.command()
def status(experiment: Named = None) -> None:
    """Show hosts, phases and runs of an experiment, and the experiments that hold hosts on this machine."""
    text, unread = commands.status(experiment)
    sys.stdout.write(text)
    if unread:
        advice = "\n  ".join(dict.fromkeys(error.advice for error in unread))
        raise StateError("\n".join(error.what for error in unread), advice)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def ssh(
    host: Annotated[str, typer.Argument(metavar="HOST", help="Name of a host of the experiment.")],
    command: Annotated[list[str] | None, typer.Argument(metavar="[COMMAND]...")] = None,
    experiment: Named = None,
) -> None:
    """Log in to a host, or run a command there."""
    commands.ssh(opening.find_workspace(experiment), host, command or [])


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def openstack(
    site: Annotated[str, typer.Argument(metavar="SITE", help="Whose services are asked.")],
    arguments: Annotated[list[str] | None, typer.Argument(metavar="ARGS...")] = None,
    experiment: Named = None,
) -> None:
    """Run the openstack client against one site; `clouds.yaml` in the workspace does the same for other tools."""
    commands.openstack(opening.find_workspace(experiment), site, arguments or [])


@app.command()
def release(
    experiment: Annotated[str, typer.Argument(metavar="NAME", help="Experiment file, workspace folder, or name.")],
    verbose: Verbose = False,
) -> None:
    """Give back all that an experiment holds, from any state. Results and report stay."""
    commands.release(experiment, _announcer(verbose))


@app.command()
def extend(
    experiment: Annotated[str, typer.Argument(metavar="NAME", help="Experiment file, workspace folder, or name.")],
    more: Annotated[str, typer.Argument(metavar="DURATION", help='How much more: "90 min", or "01:30:00".')],
    verbose: Verbose = False,
) -> None:
    """Ask for more time for hosts that are booked for some time (Grid'5000); what was granted, on standard output."""
    sys.stdout.write(bookings.extend(experiment, more, _announcer(verbose)))


@app.command(name="doctor")
def doctor_command(
    file: Annotated[
        Path | None,
        typer.Argument(metavar="[FILE]", help="An experiment: its provider, and memory for it.", show_default=False),
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help=f"Which provider: {', '.join(PROVIDERS)}.  [default: the file's, or local]", show_default=False
        ),
    ] = None,
) -> None:
    """Try what is needed on this machine; say what is missing, and the command that mends it (on standard output)."""
    experiment = opening.open_experiment(file).experiment if file else None
    provider = provider or (experiment.provider.type if experiment else "local")
    found = doctor.look(provider, experiment, _announcer(False).line)
    for note in found.notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    for lack in found.lacks:
        console.print(f"missing: {lack.what}", markup=False, highlight=False, soft_wrap=True)
        if lack.command:
            sys.stdout.write(lack.command + "\n")
    console.print(cache.size_line(stack.cache_directory()), markup=False, highlight=False, soft_wrap=True)
    if found.lacks:
        raise typer.Exit(EXIT_TESTBED)
    console.print(f"nothing is missing for provider {provider}", highlight=False)


@cache_app.command(name="list")
def cache_list() -> None:
    """List what is cached, how large it is and who uses it, on standard output."""
    sys.stdout.write(cache.table(cache.entries(stack.cache_directory())))


@cache_app.command(name="prune")
def cache_prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; do nothing.")] = False,
) -> None:
    """Remove what neither this version nor any experiment's hosts use; prints what went.

    Images and environments, and the sources and wheels that environments are built from.
    """
    removed = cache.prune(stack.cache_directory(), dry_run)
    sys.stdout.write(cache.table(removed) if removed else "")
    word = "would be freed" if dry_run else "freed"
    console.print(f"{cache.size_text(sum(entry.octets for entry in removed))} {word}", highlight=False)


@app.command()
def new(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the experiment.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The file to write.  [default: NAME.yaml]", show_default=False)
    ] = None,
) -> None:
    """Write a commented experiment file to start from."""
    path = output or Path(f"{name}.yaml")
    commands.write_new(path, config.template(name))
    sys.stdout.write(f"{path}\n")


@app.command(name="import-enos")
def import_enos(
    reservation: Annotated[
        Path, typer.Argument(metavar="FILE", help="EnOS's file: reservation.yaml.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write.  [default: standard output]", show_default=False),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the experiment.  [default: the job's, or the file's]", show_default=False),
    ] = None,
) -> None:
    """Turn an EnOS reservation into an experiment file; what has no counterpart is told on standard error."""
    text = config.read_text(reservation, "EnOS's reservation file")
    made = enos_import.convert(text, str(reservation), name, g5k_request.paris_time())
    if output is None:
        sys.stdout.write(made.text)
    else:
        commands.write_new(output, made.text)
        sys.stdout.write(f"{output}\n")
    for line in made.lost:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"discovery-deploy {__version__}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def _flush() -> None:
    """Write what is left for standard output. Raises StateError when it takes no more."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what could not be written is dropped
        raise StateError(f"standard output: {error.strerror}", "What was done is kept; write it elsewhere.") from error


def main() -> None:
    """Entry point. Turns every failure into one clear message and the exit code of its kind."""
    process_settings.apply()
    interruption.obey_signals()
    try:
        with interruption.ends_the_process():
            try:
                app(standalone_mode=True)
            finally:
                _flush()
    except DiscoveryError as error:
        console.print(str(error), markup=False, highlight=False, soft_wrap=True, style="red")
        sys.exit(error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        refusal = machine_refusal(error)
        if refusal is not None:
            console.print(refusal, markup=False, highlight=False, soft_wrap=True, style="red")
            sys.exit(EXIT_STATE)
        traceback.print_exc()
        console.print("this is a bug of discovery-deploy; please report it with the lines above", highlight=False)
        sys.exit(EXIT_BUG)

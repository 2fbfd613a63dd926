"""Runs the official conformance suite against a server directly and through the tunnel, and compares the results.

Revisions of the protocol: 2025-11-25 and 2026-07-28. Fixtures: the everything-server in the source distribution of the
Python SDK, of version 2.3.0 (speaks both revisions) and 1.30.0 (speaks 2025-11-25 alone). Columns:

    direct               the fixture's own Streamable HTTP, without mcpport
    shared, isolated     the server's own endpoint, with one process, or with one for each session or principal
    aggregate, aggregate-isolated    the endpoint of all servers, under the server's own names

Each run is compared with the direct run of the same revision. A scenario that passes there must pass in each column, but
for those in DIFFERS; the numbers of passed scenarios must be those in EXPECTED. The scenarios that the revision requires
are scored; the suite runs and reports others too.
"""

import argparse
import collections
import json
import os
import re
import subprocess
import sys

import kit
import renamer

NODE = kit.PEERS / "conformance" / "node_modules"
SUITE = NODE / "@modelcontextprotocol" / "conformance"

# For one scenario; the slowest takes 4 s when the server is asked directly.
SCENARIO_SECONDS = 20
# For all scenarios of a revision: a server that answers nothing fails most of them at once, not after SCENARIO_SECONDS.
SUITE_SECONDS = 600

LEGACY, MODERN = REVISIONS = ("2025-11-25", "2026-07-28")
OLD, NEW = "1.30.0", "2.3.0"
COLUMNS = ("direct", "shared", "isolated", "aggregate", "aggregate-isolated")
THROUGH = COLUMNS[1:]

# Version of the Python SDK to (its environment, its source distribution), as scripts/conformance.sh installs them.
FIXTURES = {NEW: ("python2", "everything-python2"), OLD: ("python1", "everything-python1")}

# The tools of these scenarios send a request to their client while the call runs. A shared process of 2025-11-25 has no
# client of its own to ask, and in a process of 2026-07-28 the SDK refuses such requests; questions in results work there.
ASKS = {
    "tools-call-sampling": "the tool sends sampling/createMessage",
    "tools-call-elicitation": "the tool sends elicitation/create",
    "elicitation-sep1034-defaults": "the tool sends elicitation/create",
    "elicitation-sep1330-enums": "the tool sends elicitation/create",
}

# Scenarios of 2026-07-28 whose tool or prompt is not in the fixture of 1.30.0.
NOT_IN_OLD = {
    "server-stateless": "no test_missing_capability",
    "input-required-result-basic-elicitation": "no test_input_required_result_elicitation",
    "input-required-result-basic-sampling": "no test_input_required_result_sampling",
    "input-required-result-basic-list-roots": "no test_input_required_result_list_roots",
    "input-required-result-request-state": "no test_input_required_result_request_state",
    "input-required-result-multiple-input-requests": "no test_input_required_result_multiple_inputs",
    "input-required-result-multi-round": "no test_input_required_result_multi_round",
    "input-required-result-non-tool-request": "no test_input_required_result_prompt",
    "input-required-result-result-type": "no test_input_required_result_elicitation",
    "input-required-result-tampered-state": "no test_input_required_result_tampered_state",
    "input-required-result-capability-check": "no test_input_required_result_capabilities",
    "json-schema-2020-12": "no json_schema_2020_12_tool",
    "http-custom-header-server-validation": "no tool with an x-mcp-header",
}

NO_MARKS = {"http-custom-header-server-validation": "the aggregate publishes tools without their x-mcp-header marks"}

# (fixture, revision, column) to the scenarios that pass directly but not here, with the reason. An entry that is not, or no
# longer, true fails the run.
DIFFERS = {
    (NEW, LEGACY, "shared"): ASKS,
    (NEW, LEGACY, "aggregate"): ASKS,
    (NEW, MODERN, "aggregate"): NO_MARKS,
    (NEW, MODERN, "aggregate-isolated"): NO_MARKS,
    (OLD, LEGACY, "shared"): ASKS,
    (OLD, LEGACY, "aggregate"): ASKS,
    **{(OLD, MODERN, column): NOT_IN_OLD for column in THROUGH},
}

# (fixture, revision, column) to the number of passed scenarios: scored ones, and all. 2025-11-25 has 30 and 33, 2026-07-28
# has 37 and 50, of which nine test the tasks extension, and one is always skipped.
EXPECTED = {
    (NEW, LEGACY, "direct"): (30, 33),
    (NEW, LEGACY, "shared"): (26, 29),
    (NEW, LEGACY, "isolated"): (30, 33),
    (NEW, LEGACY, "aggregate"): (26, 29),
    (NEW, LEGACY, "aggregate-isolated"): (30, 33),
    (NEW, MODERN, "direct"): (37, 40),
    (NEW, MODERN, "shared"): (37, 40),
    (NEW, MODERN, "isolated"): (37, 40),
    (NEW, MODERN, "aggregate"): (37, 39),
    (NEW, MODERN, "aggregate-isolated"): (37, 39),
    (OLD, LEGACY, "direct"): (30, 32),
    (OLD, LEGACY, "shared"): (26, 28),
    (OLD, LEGACY, "isolated"): (30, 32),
    (OLD, LEGACY, "aggregate"): (26, 28),
    (OLD, LEGACY, "aggregate-isolated"): (30, 32),
    **{(OLD, MODERN, column): (26, 27) for column in THROUGH},
}


def baseline(fixture, revision):
    """Returns the fixture whose direct run counts: one that speaks the revision."""
    return NEW if revision == MODERN else fixture


def requirements(revision):
    """Returns the names of the scored scenarios of servers."""
    text = (SUITE / "requirements" / f"{revision}.yaml").read_text()
    section = re.search(r"^server:\n((?:  - \S+\n)+)", text, re.MULTILINE)
    kit.need(section, f"no list of scenarios for {revision}")
    return re.findall(r"- (\S+)", section[1])


def run_suite(url, revision, directory):
    """Runs all scenarios of a revision against a server. Returns the checks of each scenario by name."""
    argv = [NODE / ".bin" / "node", SUITE / "dist" / "index.js", "server", "--url", url]
    argv += ["--requirements", revision, "--timeout", str(SCENARIO_SECONDS * 1000), "-o", directory]
    run = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SUITE_SECONDS)
    found = {}
    for path in directory.glob("*/checks.json"):
        name = re.fullmatch(r"server-(.*)-\d{4}-\d\d-\d\dT.*", path.parent.name)[1]
        found[name] = json.loads(path.read_text())
    kit.need(found, f"the suite did not run: {kit.short(run.stdout[-600:])}")
    return found


def verdict(checks):
    """Returns the result of a scenario: ok, FAIL, skip (nothing was checked), or - (it was not run)."""
    if checks is None:
        return "-"
    kinds = {check["status"] for check in checks}
    if "FAILURE" in kinds:
        return "FAIL"
    return "ok" if kinds & {"SUCCESS", "WARNING", "INFO"} else "skip"


def failures(checks):
    """Returns the failed checks in one line."""
    if checks is None:
        return "not run"
    return "; ".join(f"{c['id']}: {c.get('errorMessage', '?')}" for c in checks if c["status"] == "FAILURE")


def statuses(checks):
    """Returns the results of each check by its id; several checks may have one id."""
    found = collections.defaultdict(list)
    for check in checks:
        if check["status"] != "INFO":
            found[check["id"]].append(check["status"])
    return {id: ", ".join(sorted(kinds)) for id, kinds in found.items()}


def changed(wanted, found):
    """Returns what differs between two runs that passed, such as `sep-2164-data-uri: SUCCESS -> WARNING`."""
    before, after = statuses(wanted), statuses(found)
    for id in sorted({*before, *after}):
        was, now = before.get(id, "absent"), after.get(id, "absent")
        if was != now:
            yield f"{id}: {was} -> {now}"


class Bench:
    """The fixtures, directly and behind gateways, each started when it is first needed."""

    def __init__(self, world, era):
        self.world, self.era = world, era
        self.targets = {}

    def url(self, fixture, column):
        """Returns the URL of a fixture in a column."""
        if (fixture, column) not in self.targets:
            started = self.direct(fixture) if column == "direct" else self.tunnel(fixture, column.endswith("isolated"))
            self.targets.update({(fixture, name): url for name, url in started.items()})
        return self.targets[fixture, column]

    def command(self, fixture, *arguments):
        """Returns a command in a fixture's environment."""
        python, source = FIXTURES[fixture]
        path = kit.PEERS / source / "examples" / "servers" / "everything-server"
        return ["env", f"PYTHONPATH={path}", kit.PEERS / python / "bin" / "python", "-B", *arguments]

    def direct(self, fixture):
        """Starts the fixture's own endpoint."""
        port = kit.free_port()
        server = self.world.start("direct", self.command(fixture, "-m", "mcp_everything_server", "--port", port))
        kit.until(lambda: kit.listens(port) or not server.alive(), 30, f"the fixture listens; {server.tail()}")
        return {"direct": f"http://localhost:{port}/mcp"}

    def tunnel(self, fixture, isolated):
        """Starts a gateway and a register, whose two endpoints lead to the fixture."""
        _, port = self.world.gateway()
        flags = ["--era", self.era] if self.era else []
        if isolated:
            flags += ["--sessions", "isolated", "--max-sessions", 64]
        self.world.register("every", self.command(fixture, kit.HERE / "conformance_server.py"), port, *flags)
        kit.listed(port, "every_test_simple_text", seconds=60)
        mode = "isolated" if isolated else "shared"
        aggregate = "aggregate-isolated" if isolated else "aggregate"
        renamed = renamer.serve(port, "every_")
        return {mode: f"http://localhost:{port}/servers/every/mcp", aggregate: f"http://localhost:{renamed}/mcp"}


class Results:
    """The runs of the suite so far."""

    def __init__(self, bench):
        self.bench = bench
        self.runs = {}

    def checks(self, fixture, revision, column):
        """Returns the checks of each scenario; runs the suite the first time."""
        key = (fixture, revision, column)
        if key not in self.runs:
            url = self.bench.url(fixture, column)
            self.runs[key] = run_suite(url, revision, self.bench.world.directory / "-".join(key))
        return self.runs[key]


def judge(key, wanted, found):
    """Returns what is wrong in a column: a line for each scenario that does not end as it should."""
    differs = DIFFERS.get(key, {})
    for name in sorted(wanted):
        was, now = verdict(wanted[name]), verdict(found.get(name))
        if name in differs and was != "ok":
            yield f"{name}: is in DIFFERS, but does not pass directly"
        elif name in differs and now == "ok":
            yield f"{name}: is in DIFFERS ({differs[name]}), but passes"
        elif name not in differs and was == "ok" and now != "ok":
            yield f"{name}: {failures(found.get(name)) or now}"
    for name in sorted(set(differs) - set(wanted)):
        yield f"{name}: is in DIFFERS, but there is no such scenario"


def passed(found, scored):
    """Returns the numbers of passed scenarios: scored ones, and all."""
    good = [name for name, checks in found.items() if verdict(checks) == "ok"]
    return len([name for name in good if name in scored]), len(good)


def table(fixture, revision, wanted, columns, scored):
    """Returns the lines of the table: one for each scenario, first the scored ones, then the others in brackets."""
    labels = {name: name if name in scored else f"({name})" for name in wanted}
    width = max(map(len, labels.values()))

    def line(label, cells, note=""):
        spaced = "  ".join(f"{one:{max(10, len(column))}}" for one, column in zip(cells, columns, strict=True))
        return f"{label:{width}}  {spaced}  {note}".rstrip()

    yield line(f"{revision}, mcp {fixture}", columns)
    for name in sorted(wanted, key=lambda name: (name not in scored, name)):
        cells = [cell(found.get(name)) for found in columns.values()]
        reasons = {DIFFERS.get((fixture, revision, column), {}).get(name) for column in columns} - {None}
        yield line(labels[name], cells, "; ".join(sorted(reasons)))
    yield line("passed: scored, all", ["{}, {}".format(*passed(found, scored)) for found in columns.values()])


def cell(checks):
    """Returns the cell of a scenario: its result, with the numbers of failed and of all checks if it failed."""
    result = verdict(checks)
    if result != "FAIL":
        return result
    counted = [check["status"] for check in checks if check["status"] in ("SUCCESS", "FAILURE")]
    return f"FAIL {counted.count('FAILURE')}/{len(counted)}"


def report(results, fixture, revision, chosen, verbose):
    """Runs and prints one table. Returns the number of failures."""
    scored = requirements(revision)
    base = baseline(fixture, revision)
    wanted = results.checks(base, revision, "direct")
    columns = {"direct" if base == fixture else f"{base} direct": wanted}
    wrong = counts((base, revision, "direct"), wanted, scored)
    for column in chosen:
        key = (fixture, revision, column)
        found = columns[column] = results.checks(*key)
        wrong += [f"{column}: {line}" for line in judge(key, wanted, found)] + counts(key, found, scored)
    print("\n".join(table(fixture, revision, wanted, columns, scored)))
    for column, found in columns.items():
        for name in sorted(wanted):
            if verdict(wanted[name]) == verdict(found.get(name)) == "ok":
                for line in changed(wanted[name], found[name]):
                    print(f"note {column}, {name}: {line}")
            elif verbose and verdict(found.get(name)) == "FAIL":
                print(f"why {column}, {name}: {failures(found[name])}")
    room = 10_000 if verbose else 300
    print("".join(f"FAIL {revision}, mcp {fixture}, {kit.short(line, room)}\n" for line in wrong), flush=True)
    return len(wrong)


def counts(key, found, scored):
    """Returns what is wrong with the numbers of passed scenarios."""
    got = passed(found, scored)
    if got == EXPECTED[key]:
        return []
    return [f"{key[2]}: {got[0]} scored scenarios passed and {got[1]} in all, expected are {EXPECTED[key]}"]


def options(arguments):
    """Returns the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--revision", choices=REVISIONS, action="append", help="only this; repeatable")
    parser.add_argument("--fixture", choices=list(FIXTURES), action="append", help="only this; repeatable")
    parser.add_argument("--column", choices=COLUMNS, action="append", help="only this beside direct; repeatable")
    parser.add_argument("--era", choices=("auto", "legacy", "modern"), help="passed to register; default: nothing is passed")
    parser.add_argument("--verbose", action="store_true", help="print the reason of each failed scenario")
    return parser.parse_args(arguments)


def main():
    chosen = options(sys.argv[1:])
    columns = [column for column in THROUGH if not chosen.column or column in chosen.column]
    world, wrong = kit.World(), 1
    try:
        results = Results(Bench(world, chosen.era))
        tables = [(f, r) for f in chosen.fixture or FIXTURES for r in chosen.revision or REVISIONS]
        # Without another column there is nothing to compare with the other fixture's run.
        tables = [(f, r) for f, r in tables if columns or baseline(f, r) == f]
        wrong = sum(report(results, fixture, revision, columns, chosen.verbose) for fixture, revision in tables)
        print("conformance: as expected" if not wrong else f"conformance: {wrong} failures")
    except kit.Failed as why:
        print(f"FAIL {why}")
    finally:
        world.close(keep=wrong != 0)
    return 1 if wrong else 0


if __name__ == "__main__":
    os.environ.pop("PYTHONPATH", None)
    sys.exit(main())

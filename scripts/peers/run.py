"""Runs checks by name, each in its own process with a deadline: `ok NAME` or `FAIL NAME: why`.

A name selects the check and all checks whose names begin with it. `--list` lists them.
"""

import os
import signal
import subprocess
import sys
import time
import traceback

import checks_bridged
import checks_canary
import checks_children
import checks_compat
import checks_demo
import checks_endpoints
import checks_load
import checks_load_http
import checks_modern
import checks_raw
import checks_readme
import checks_sdk
import checks_states
import kit

MODULES = (
    checks_sdk,
    checks_compat,
    checks_raw,
    checks_load,
    checks_load_http,
    checks_canary,
    checks_demo,
    checks_readme,
    checks_children,
    checks_endpoints,
    checks_modern,
    checks_states,
    checks_bridged,
)

# Seconds for the cleanup of a check, in addition to its own.
GRACE = 20

# Name to (function that takes a World, timeout in seconds).
CHECKS = {name: entry for module in MODULES for name, entry in module.CHECKS.items()}


def chosen(names):
    """Returns the selected checks."""
    for name in names:
        if not any(known == name or known.startswith(f"{name}-") for known in CHECKS):
            sys.exit(f"no check is called {name}; there are: {' '.join(CHECKS)}")
    return [k for k in CHECKS if not names or any(k == n or k.startswith(f"{n}-") for n in names)]


def run_here(name):
    """Runs one check in this process. Returns the exit code."""
    world, code = kit.World(), 1
    try:
        said = CHECKS[name][0](world)
        print(f"ok {name}" + (f": {said}" if said else ""), flush=True)
        code = 0
    except kit.Failed as why:
        print(f"FAIL {name}: {why}", flush=True)
    except Exception as error:
        print(f"FAIL {name}: {kit.short(f'{type(error).__name__}: {error}')}", flush=True)
        traceback.print_exc()
    finally:
        world.close(keep=code != 0)
    return code


def run_apart(name):
    """Runs one check in a child process. Returns whether it passed."""
    seconds = CHECKS[name][1]
    child = subprocess.Popen([sys.executable, "-B", __file__, "--here", name], start_new_session=True)
    try:
        return child.wait(seconds + GRACE) == 0
    except subprocess.TimeoutExpired:
        print(f"FAIL {name}: did not even end when told to", flush=True)
        return False
    finally:
        if child.poll() is None:
            kit.kill_all([*kit.descendants(child.pid), child.pid])
            child.wait()


def late(*_):
    """Raises when the deadline of a check has passed."""
    raise kit.Failed("took too long")


def main(arguments):
    if arguments[:1] == ["--list"]:
        print("\n".join(CHECKS))
        return 0
    if arguments[:1] == ["--here"]:
        signal.signal(signal.SIGALRM, late)
        signal.alarm(CHECKS[arguments[1]][1])
        return run_here(arguments[1])
    names = chosen(arguments)
    passed = 0
    for name in names:
        begun = time.monotonic()
        passed += run_apart(name)
        if os.environ.get("PEERS_TIMES"):
            print(f"  {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{passed} passed, {len(names) - passed} failed", flush=True)
    return 0 if passed == len(names) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

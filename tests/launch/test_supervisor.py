"""The supervisor starts, restarts, gives up and stops a family, proven on small real processes."""

from __future__ import annotations

import os
import signal

import pytest
from fake_family import running, start
from penstock.server.family.child import LONGEST_BACK_OFF_S, BackOff


def left_in(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_serving_is_announced_once_when_every_front_end_serves() -> None:
    with running(num_frontends=2) as family:
        family.wait_for("supervisor serving")
        events = family.events()
        assert events.index("supervisor serving") > max(
            events.index("frontend 0 serves"), events.index("frontend 1 serves")
        )
        family.process.terminate()
        assert family.wait() == 0
        assert family.count("supervisor serving") == 1


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_signal_drains_front_ends_before_the_engine_ends_and_leaves_nothing(
    how: signal.Signals,
) -> None:
    with running(num_frontends=2) as family:
        family.wait_for("supervisor serving")
        family.process.send_signal(how)
        assert family.wait() == 0
        after = family.events()[family.events().index("supervisor draining") :]
        ends = [line for line in after if line.startswith("frontend") and line.endswith("ends")]
        assert len(ends) == 2
        assert after.index("engine got SIGTERM") > max(after.index(line) for line in ends)
        assert family.none_alive()
        assert left_in(family.temporary) == []


def test_children_are_out_of_reach_of_the_terminals_ctrl_c() -> None:
    with running() as family:
        family.wait_for("supervisor serving")
        ours = os.getsid(family.process.pid)
        for name in ("engine", "frontend 0"):
            assert os.getsid(family.pids(name)[0]) != ours


def test_a_killed_engine_is_restarted_as_a_new_incarnation_and_front_ends_hear_of_it() -> None:
    with running(num_frontends=2) as family:
        family.wait_for("supervisor serving")
        os.kill(family.pids("engine")[0], signal.SIGKILL)
        family.wait_for("engine started", 2)
        incarnations = [
            int(line.split()[-1]) for line in family.events() if line.startswith("engine started")
        ]
        assert incarnations[0] < incarnations[1] < 2**63
        for index in range(2):
            family.wait_for(f"frontend {index} heard restarting of {incarnations[0]}")
        family.process.terminate()
        assert family.wait() == 0


def test_an_engine_that_exits_by_itself_is_restarted_too() -> None:
    with running() as family:
        family.wait_for("supervisor serving")
        os.kill(family.pids("engine")[0], signal.SIGTERM)  # the fake engine exits 0 on it
        family.wait_for("engine started", 2)


def test_an_engine_beyond_its_restarts_is_given_up_and_front_ends_stay_to_say_so() -> None:
    with running(num_frontends=2, limits={"engine_restart_limit": 1}) as family:
        family.wait_for("supervisor serving")
        os.kill(family.pids("engine")[0], signal.SIGKILL)
        family.wait_for("engine started", 2)
        os.kill(family.pids("engine")[1], signal.SIGKILL)
        family.wait_for("frontend 0 heard failed")
        family.wait_for("frontend 1 heard failed")
        assert family.process.poll() is None
        # A front end that starts afterwards learns it as well.
        os.kill(family.pids("frontend 0")[0], signal.SIGKILL)
        family.wait_for("frontend 0 heard failed", 2)
        assert family.count("engine started") == 2
        family.process.terminate()
        assert family.wait() == 1
        assert "given up" in family.log()


def test_an_engine_that_refuses_its_configuration_is_not_started_again_and_its_status_is_the_commands() -> (
    None
):
    with running(engine_exit=2) as family:
        assert family.wait() == 2
        assert family.count("engine started") == 1
        assert family.log() == "error: the model does not fit\n"
        assert family.count("frontend 0 got SIGTERM") == 0  # nothing to drain, nothing to add to that line
        assert family.none_alive()
        assert left_in(family.temporary) == []


def test_an_engine_that_never_worked_is_tried_twice_and_ends_the_command_with_status_1() -> None:
    with running(engine_exit=3) as family:
        assert family.wait() == 1
        assert family.count("engine started") == 2
        assert "engine could not be started: exit status 3" in family.log()


def test_a_stop_signal_while_the_model_loads_ends_in_order(tmp_path) -> None:
    with running(engine_state="loading") as family:
        family.wait_for("engine started")
        family.wait_for("frontend 0 started")
        family.process.terminate()
        assert family.wait() == 0
        assert family.count("supervisor serving") == 0
        assert family.none_alive()
        assert left_in(family.temporary) == []


def test_a_killed_front_end_is_restarted_and_serves_again() -> None:
    with running(num_frontends=2) as family:
        family.wait_for("supervisor serving")
        os.kill(family.pids("frontend 1")[0], signal.SIGKILL)
        family.wait_for("frontend 1 serves", 2)
        assert family.count("engine started") == 1


@pytest.mark.parametrize(("status", "starts"), [(2, 1), (3, 2)])
def test_a_front_end_that_cannot_start_ends_the_command(status: int, starts: int) -> None:
    with running(frontend_exit=status) as family:
        assert family.wait() == (2 if status == 2 else 1)
        assert family.count("frontend 0 started") == starts
        assert family.none_alive()


def test_an_engine_that_dies_while_streams_finish_is_restarted(tmp_path) -> None:
    hold = tmp_path / "finished"
    with running(hold=str(hold)) as family:
        family.wait_for("supervisor serving")
        family.process.terminate()
        family.wait_for("frontend 0 got SIGTERM")
        os.kill(family.pids("engine")[0], signal.SIGKILL)
        family.wait_for("engine started", 2)
        hold.touch()
        assert family.wait() == 0
        assert family.none_alive()


def test_a_second_ctrl_c_stops_at_once_and_still_cleans_up(tmp_path) -> None:
    with running(hold=str(tmp_path / "never")) as family:
        family.wait_for("supervisor serving")
        family.process.send_signal(signal.SIGINT)
        family.wait_for("frontend 0 got SIGTERM")
        family.process.send_signal(signal.SIGINT)
        assert family.wait() == 128 + signal.SIGINT
        assert family.none_alive()
        assert left_in(family.temporary) == []
        assert family.count("engine started") == 1


@pytest.mark.parametrize("kind", ["engine", "frontend"])
def test_a_child_that_ignores_sigterm_is_killed_when_its_time_is_over(kind: str) -> None:
    limits = {"shutdown_timeout_s": 0.1, "grace_s": 0.1}
    with running(ignore_sigterm=kind, limits=limits) as family:
        family.wait_for("supervisor serving")
        family.process.terminate()
        assert family.wait() == 0
        assert "does not end: killed" in family.log()
        assert family.none_alive()


def test_what_works_in_the_background_is_started_once_the_family_serves() -> None:
    with running() as family:
        family.wait_for("background started")
        events = family.events()
        (start,) = [line for line in events if line.startswith("background started")]
        assert events.index(start) > events.index("supervisor serving")


def test_a_death_in_the_background_disturbs_nobody_and_it_is_started_anew() -> None:
    with running(num_frontends=2) as family:
        family.wait_for("background started")
        os.kill(family.pids("background")[0], signal.SIGKILL)
        family.wait_for("background started", 2)
        assert family.count("frontend 0 heard") == family.count("frontend 1 heard") == 0
        assert [family.count(f"{name} started") for name in ("engine", "frontend 0", "frontend 1")] == [
            1,
            1,
            1,
        ]
        family.process.terminate()
        assert family.wait() == 0
        assert family.none_alive()


@pytest.mark.parametrize("status", [0, 1, 2])
def test_what_keeps_ending_in_the_background_never_ends_the_family(status: int) -> None:
    with running(background_exit=status) as family:
        family.wait_for("background started", 3)
        assert family.process.poll() is None
        family.process.terminate()
        assert family.wait() == 0


def test_the_background_ends_after_the_front_ends_which_may_still_need_it() -> None:
    with running() as family:
        family.wait_for("background started")
        family.process.terminate()
        assert family.wait() == 0
        events = family.events()
        assert events.index("background got SIGTERM") > events.index("frontend 0 ends")
        assert family.none_alive()


def test_no_background_is_started_for_a_family_that_never_serves() -> None:
    with running(engine_exit=2) as family:
        assert family.wait() == 2
        assert family.count("background started") == 0


def test_no_child_survives_a_killed_supervisor_and_the_next_start_removes_its_files() -> None:
    with running(num_frontends=2) as family:
        family.wait_for("supervisor serving")
        (left,) = left_in(family.temporary)
        family.process.kill()
        family.wait()
        assert family.none_alive()
        assert left_in(family.temporary) == [left]
        settings = {"num_frontends": 1, "limits": {}}
        second = start(family.folder, family.temporary, settings)
        family.wait_for("supervisor serving", 2)
        (now,) = left_in(family.temporary)
        assert now != left
        second.process.terminate()
        assert second.wait() == 0
        assert left_in(family.temporary) == []


def test_the_first_restart_is_immediate_and_further_ones_wait_twice_as_long() -> None:
    back_off = BackOff(limit=10, window_s=1000)
    delays = [back_off.next_delay(now=1.0) for _ in range(11)]
    assert delays == [0, 0.5, 1, 2, 4, 8, 16, *[LONGEST_BACK_OFF_S] * 3, None]


def test_restarts_older_than_the_window_no_longer_count() -> None:
    back_off = BackOff(limit=1, window_s=10)
    assert back_off.next_delay(0.0) == 0
    assert back_off.next_delay(9.0) is None
    assert back_off.next_delay(10.5) == 0


def test_no_restart_is_allowed_with_limit_0() -> None:
    assert BackOff(limit=0, window_s=10).next_delay(0.0) is None

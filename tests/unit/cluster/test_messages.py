from __future__ import annotations

from edgempi.cluster.messages import is_report, rank_report, said_once

FRAME = "-" * 74 + "\n"
EXIT = [FRAME, "prterun detected that one or more processes exited with non-zero status,\n", "thus ...\n", FRAME]
ABORT = ["\0" + FRAME, "MPI_ABORT was invoked on rank 1 in communicator MPI_COMM_WORLD\n", FRAME]
KILLED = [FRAME, "prterun noticed that process rank 1 exited on\n", "signal 9 (Killed).\n", FRAME]


def test_notices_that_a_rank_has_explained_itself_go() -> None:
    mpich = "Abort(2) on node 1 (rank 1 in comm 0): application called MPI_Abort(MPI_COMM_WORLD, 2) - process 1\n"
    agent = "[head:05997] plm:ssh: Warning: setpgid(6005,6005) failed in parent with errno=Permission denied(13)\n"
    assert list(said_once(["mine\n", *EXIT, *ABORT, agent, "yours\n", mpich])) == ["mine\n", "yours\n"]


def test_a_lost_peer_is_one_line_and_the_first_one_counts() -> None:
    notice = [FRAME, "An MPI communication peer process has unexpectedly disconnected.  This\n", "usually ...\n", "\n"]
    first, second = ([*notice, f"  Local host: a\n  Peer host:  {peer}\n", FRAME] for peer in ("pi", "pc"))
    handler = ["[a:00000] *** An error occurred in Socket closed\n", "[a:00000] ***    and MPI will try\n"]
    said = ["edgempi: the rank on pi is gone: its connection closed\n", "x\n"]
    assert list(said_once([*first, *handler, *second, *handler, "x\n"])) == said


def test_an_error_handler_that_met_a_closed_socket_is_silent_beside_the_launcher() -> None:
    closed = ["[a:0] *** An error occurred in Socket closed\n", "[a:0] ***    and MPI will try\n"]
    other = ["[b:0] *** An error occurred in MPI_Recv\n", "[b:0] ***    and MPI will try\n"]
    delay = "[a:25154] Delaying for 1 seconds before aborting\n"
    assert list(said_once([delay, *closed, *other, *KILLED])) == [*other, *KILLED]


def test_other_notices_stay() -> None:
    assert list(said_once([*EXIT, *KILLED, "\n"])) == [*KILLED, "\n"]


def test_a_frame_without_an_end_stays() -> None:
    assert list(said_once([FRAME, "and then\n"])) == [FRAME, "and then\n"]


def test_the_first_report_stands_for_all() -> None:
    first = rank_report(1, "pi", "Traceback:\n  boom").splitlines(keepends=True)
    second = rank_report(0, "pc", "Traceback:\n  boom").splitlines(keepends=True)
    assert first == ["[rank 1 on pi] Traceback:\n", "[rank 1 on pi]   boom"]
    assert list(said_once([first[0], second[0], first[1], second[1]])) == first


def test_reports_are_known() -> None:
    assert all(is_report(line) for line in rank_report(12, "pi", "Traceback:\n  boom").splitlines())
    assert not any(is_report(line) for line in ("rank 1 on pi", "edgempi: [rank 1 on pi] x", KILLED[1]))


def test_a_users_error_is_said_once_and_other_lines_may_repeat() -> None:
    assert list(said_once(["edgempi: no\n", "x\n", "edgempi: no\n", "x\n"])) == ["edgempi: no\n", "x\n", "x\n"]

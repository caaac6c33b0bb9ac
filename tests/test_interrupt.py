"""Ctrl-C asks politely; the second one does not."""

import os
import signal
import threading

import pytest

from woodshed.console import Terminal
from woodshed.interrupt import SIGNALS, Stopper


@pytest.mark.parametrize("name", SIGNALS)
def test_the_first_signal_raises_a_flag_and_says_so_where_a_terminal_is_left(name, capsys):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip(f"there is no {name} here")
    with Stopper(Terminal(plain=True)) as stopper:
        assert not stopper.is_asked()
        os.kill(os.getpid(), number)
        assert stopper.is_asked()
    assert ("the state will be saved" in capsys.readouterr().err) == (name != "SIGHUP")


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs SIGHUP")
def test_nohup_is_heeded():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stopper(Terminal(plain=True)) as stopper:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stopper.is_asked()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_program_may_ask_too():
    with Stopper(Terminal(plain=True)) as stopper:
        stopper.ask()
        assert stopper.is_asked()


def test_a_second_ctrl_c_stops_at_once():
    with Stopper(Terminal(plain=True)):
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT)
    with Stopper(Terminal(plain=True)):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_in_another_thread_the_flag_stays_down():
    seen = []

    def work():
        with Stopper(Terminal(plain=True)) as stopper:
            seen.append(stopper.is_asked())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_data_worker_that_inherits_the_handlers_stays_silent_and_alive(capfd):
    """Ctrl-C reaches the whole group of processes: a worker must neither say so again nor die of a second one."""
    with Stopper(Terminal(plain=True)) as stopper:
        child = os.fork()
        if child == 0:
            for _ in range(3):
                os.kill(os.getpid(), signal.SIGINT)
            os._exit(7)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert not stopper.is_asked()
    assert capfd.readouterr() == ("", "")

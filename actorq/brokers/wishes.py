"""Wishes: what clients have asked the scheduler to steer, from the question to the answer.

    asked ──▶ decided: with the writer ──▶ in the log ──▶ on disk: answered

Only the scheduler assigns, so only it can say of a task that it waits and will not be handed out. It decides while none
of its assignments is on its way, and assigns nothing until it reads in the log what it has decided: so each task is
either ready or with a consumer then, and a pause holds from its record on. That takes two commits.

Who is not answered asks again, also of a scheduler that has started anew and knows nothing; see store/steering.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from actorq.brokers.messages import MalformedEventError, Steer, Steered
from actorq.store.steering import MOST_TASKS, Wish, decide, fulfilled
from actorq.tasks.ids import IdRange, check_session
from actorq.tasks.steering import STEERED, Verb
from actorq.tasks.task import check_name

if TYPE_CHECKING:
    from actorq.store.fold import QueueState

MOST_ANSWERS = 1000
"""So many answers are remembered, one of each session, for whoever has asked twice before he heard."""


class Wishes:
    """What the scheduler has been asked and has not answered."""

    def __init__(self) -> None:
        self._asked: dict[str, tuple[int, Wish]] = {}
        """By session: the ticket, and what is wished."""
        self._decided: dict[int, tuple[str, int, Wish]] = {}
        """By number of the request to the writer: session, ticket, wish."""
        self._answered: dict[str, Steered] = {}

    def __repr__(self) -> str:
        return f"<Wishes {len(self._asked)} asked, {len(self._decided)} decided>"

    def ask(self, steer: Steer) -> Steered | None:
        """Take up a question; return the answer if it was given before. Raises ValueError: it cannot be understood."""
        answer = self._answered.get(steer.session)
        if answer is not None and answer.ticket >= steer.ticket:
            return answer if answer.ticket == steer.ticket else None
        is_decided = any((steer.session, steer.ticket) == decided[:2] for decided in self._decided.values())
        if not is_decided:
            self._asked[check_session(steer.session)] = steer.ticket, wish_of(steer)
        return None

    def hold_up(self, last_request: int) -> bool:
        """Tell whether nothing may be assigned. `last_request`: of the scheduler's, the last one in the log."""
        return bool(self._asked) or any(number > last_request for number in self._decided)

    def decide(self, state: QueueState, first: int) -> list[tuple[Wish, list[IdRange]]]:
        """Decide on all that was asked; the requests to the writer have the numbers from `first` on.

        There is one for each, though it may change nothing: its acknowledgement says that what it was decided by is on
        disk.
        """
        decided = []
        for number, (session, (ticket, wish)) in enumerate(self._asked.items(), start=first):
            self._decided[number] = session, ticket, wish
            decided.append((wish, decide(state, wish)))
        self._asked.clear()
        return decided

    def answer(self, state: QueueState, acknowledged: int) -> list[tuple[str, Steered]]:
        """Return what may be said, and to whom: what was decided up to this request is in the log and on disk."""
        answers = []
        for number in [number for number in self._decided if number <= acknowledged]:
            session, ticket, wish = self._decided.pop(number)
            answer = Steered(ticket, [str(ids) for ids in fulfilled(state, wish)])
            answers.append((session, answer))
            self._answered.pop(session, None)
            self._answered[session] = answer
        while len(self._answered) > MOST_ANSWERS:
            self._answered.pop(next(iter(self._answered)))
        return answers


def wish_of(steer: Steer) -> Wish:
    """Return what a question from another process is about. Raises ValueError or MalformedEventError."""
    verb = Verb(steer.verb)
    if verb not in STEERED:
        return Wish(verb, (), check_name(steer.name) if steer.name else None)
    tasks = tuple(map(IdRange.parse, steer.tasks))
    if sum(ids.count for ids in tasks) > MOST_TASKS:
        raise MalformedEventError(f"more than {MOST_TASKS} tasks at once")
    return Wish(verb, tasks, None, steer.died_by)

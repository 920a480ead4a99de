"""What is opened once and used for every query: the models, what was learnt, and the settings."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Protocol

from bespeak.records import Profile, UserKey
from bespeak.rewriting.rewriter import Rewriter
from bespeak.settings import Settings

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.ranking.learning import Learnt
    from bespeak.session.context import ContextEncoder
    from bespeak.session.terms import TermPicker


class Lessons(Protocol):
    """What was learnt of people's behaviour; the folder that `bespeak learn` writes to is one."""

    def of(self, tenant: str) -> tuple[Learnt | None, str]:
        """What was learnt of a tenant's users, and why it cannot be used."""
        ...

    def holds(self, tenant: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What is built once and used for every query. Without an encoder there is no embedding and no user score."""

    settings: Settings
    rewriter: Rewriter
    encoder: Encoder | None
    learnt: Lessons | None = None
    terms: TermPicker | None = field(default=None, kw_only=True)
    context: ContextEncoder | None = field(default=None, kw_only=True)

    def learnt_for(self, profile: Profile) -> tuple[Learnt | None, str]:
        """What was learnt of the people of this tenant, and why it cannot be used."""
        if self.learnt is None or profile.user is None or not profile.preferences:
            return None, ""
        return self.learnt.of(profile.user.tenant)


class Profiles(Protocol):
    """Where a profile comes from; the event store is one."""

    def profile(self, user: UserKey | None, session_id: str, now: datetime) -> Profile: ...

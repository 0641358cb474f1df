"""How many examples a property is tried on."""

from hypothesis import settings


_SHARES = {"quick": 20, "sweeps": 3, "full": 1}


def thorough(examples: int) -> settings:
    """So many examples with `--sweeps --full`, a third with `--sweeps`, a twentieth."""
    share = _SHARES.get(settings.get_current_profile_name(), 20)
    number = max(5, examples // share)
    return settings(max_examples=number, deadline=None, derandomize=True)

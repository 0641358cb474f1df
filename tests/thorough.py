"""How many examples a property is tried on."""

from hypothesis import settings


def thorough(examples: int) -> settings:
    """Settings for so many examples with `--sweeps`, a twentieth of them without."""
    everything = settings.get_current_profile_name() == "sweeps"
    number = examples if everything else max(5, examples // 20)
    return settings(max_examples=number, deadline=None, derandomize=True)

"""What brings accuracy back: distillation, adapters, learned masks, allocation."""

from jaxsparse._recovery.distillation import (
    distillation_loss as distillation_loss,
    feature_loss as feature_loss,
)

"""The base class of every config."""

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen config that refuses unknown keys.

    Subclasses document a field by the string under it. A config stands beside the class or
    function that it configures; defaults are values that a user can keep.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True
    )

"""What an evidence sheet found, as the catalog keeps it."""

from pydantic import BaseModel, ConfigDict

from studio.evidence.figures import Figures, Judgement, Point


class Evidence(BaseModel):
    """The result of an evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    points: tuple[Point, ...]
    """Each subject at each strength, and the base alone."""
    judgement: Judgement
    encoder: str = ""
    """Name of the encoder that was asked; "" = none."""
    seconds: float = 0.0
    """That measuring took."""

    def curve(self, subject: str) -> list[Point]:
        """The strengths of a subject, rising, with the base at 0."""
        own = [point for point in self.points if point.subject == subject]
        base = [point for point in self.points if not point.subject][:1] if subject else []
        return sorted([*base, *own], key=lambda point: point.weight)

    def at(self, subject: str, weight: float) -> Figures | None:
        """The figures of a subject at a strength."""
        found = (p.figures for p in self.points if p.subject == subject and p.weight == weight)
        return next(found, None)

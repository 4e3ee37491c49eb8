"""The rows of an evidence sheet in words: ranked subjects with their figures."""

from studio.evidence.plan import Plan
from studio.evidence.result import Evidence
from studio.evidence.words import MEASURES, said


def figures_at(evidence: Evidence, plan: Plan, subject: str) -> dict[str, str]:
    """Figures of a subject at the recommended strength if it was drawn at it, in words."""
    judgement = evidence.judgement
    near = min(plan.weights, key=lambda weight: abs(weight - judgement.weight))
    figures = evidence.at(subject, near)
    return {measure.name: said(measure.name, figures) for measure in MEASURES}


def rows_of(evidence: Evidence, plan: Plan) -> list[dict[str, str]]:
    """The ranked subjects, best first: name, stage, score, figures at the recommended strength, reason."""
    return [
        {
            "id": rank.subject,
            "name": plan.named(rank.subject),
            "stage": rank.stage,
            "score": f"{rank.score:.2f}",
            **figures_at(evidence, plan, rank.subject),
            "reason": rank.reason,
        }
        for rank in evidence.judgement.ranks
    ]

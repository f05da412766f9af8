"""The family of problems that a study's game section describes."""

from __future__ import annotations

from c3jax.lab import games
from c3jax.lab.sections import AnswerGame, BanditGame, Game


def make_family(game: Game) -> games.Family:
    """The family of a game section, whose parameters have been checked."""
    if isinstance(game, BanditGame):
        return games.make_bandit(
            turns=game.turns, messages=game.messages, effect=game.effect, interaction=game.interaction, sigma=game.sigma
        )
    if isinstance(game, AnswerGame):
        return games.make_answer(turns=game.turns, messages=game.messages)
    graphs = {"all": games.see_all, "previous": games.see_previous, "none": games.see_none}
    family = games.make_team(
        messages=(game.messages,) * game.turns,
        sees=graphs[game.reads](game.turns) if isinstance(game.reads, str) else game.reads,
        effect=game.effect,
        coupling=game.coupling,
        spread=game.spread,
        noise=game.noise,
        sigma=game.sigma,
        features=game.features,
    )
    if game.mates:
        family = games.add_mates(family, game.mates, effect=game.mate_effect, position=game.mates_speak)
    return games.make_fresh(family, game.features) if game.kind == "fresh" else family

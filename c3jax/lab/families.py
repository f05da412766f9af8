"""The family of problems that a study's game section describes."""

from __future__ import annotations

from c3jax.lab import games
from c3jax.lab.sections import BanditGame, FreshGame, Game, GraphGame, TeamMatesGame, list_messages


def make_family(game: Game) -> games.Family:
    """The family of a game section, whose parameters have been checked."""
    messages = list_messages(game)
    if isinstance(game, BanditGame):
        return games.make_bandit(
            turns=game.turns,
            messages=game.messages,
            effect=game.effect,
            interaction=game.interaction,
            sigma=game.sigma,
        )
    turns = len(messages) - game.mates if isinstance(game, TeamMatesGame) else len(messages)
    if isinstance(game, GraphGame):
        sees = game.sees
    elif isinstance(game, FreshGame | TeamMatesGame):
        sees = games.see_all(turns)
    else:
        sees = {"all": games.see_all, "previous": games.see_previous, "none": games.see_none}[game.reads](turns)
    family = games.make_team(
        messages=(game.messages,) * turns,
        sees=sees,
        effect=game.effect,
        coupling=game.coupling,
        spread=game.spread,
        noise=game.noise,
        sigma=game.sigma,
    )
    if isinstance(game, TeamMatesGame):
        return games.add_mates(family, game.mates, effect=game.mate_effect, position=game.place)
    return games.make_fresh(family, game.features) if isinstance(game, FreshGame) else family

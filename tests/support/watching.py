"""Runs that are looked at while they go."""


def evaluated(run):
    """The points and states (path coordinates) at which a run asked the model."""
    events = []
    result = run(lambda event: events.append((event.point, event.x.clone())))
    return result, events

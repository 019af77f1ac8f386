"""A kernel's source with a mistake in it, for tests that must notice."""

from looprnn.engines import fused_source


def mutate(monkeypatch, source, right, wrong):
    """From here on the source says `wrong` where it says `right`, also where others include it."""
    read = fused_source._read.__wrapped__  # not the texts kept, which have others in them

    def mutated(which):
        text = read(which)
        assert which != source or right in text
        return text.replace(right, wrong) if which == source else text

    monkeypatch.setattr(fused_source, "_read", mutated)

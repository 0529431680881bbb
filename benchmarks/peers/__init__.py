"""The same models in other frameworks, to compare with: the only place, with tests/peers, where those are imported."""

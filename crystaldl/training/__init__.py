"""The one training loop of all recipes (extra ``train``)."""

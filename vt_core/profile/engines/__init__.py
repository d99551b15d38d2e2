"""Engines that count a corpus with many machines: they read files, run `count_batches` and add up."""

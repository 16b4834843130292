"""Packing: a data set written once into shards, which `data=shards` reads."""

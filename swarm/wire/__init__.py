"""Bytes between peers: the network interface, frames, links and tensor codecs."""

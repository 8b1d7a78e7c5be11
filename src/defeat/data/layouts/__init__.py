"""Recognising how a folder of pictures and annotations is laid out."""

from defeat.data.layouts.recognise import recognise

__all__ = ["recognise"]

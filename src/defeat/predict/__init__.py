"""A trained detector at work: on pictures and videos, from Python and from the command line."""

from defeat.predict.loading import load
from defeat.predict.predictor import Predictor
from defeat.predict.sources import Source, find_sources

__all__ = ["Predictor", "Source", "find_sources", "load"]

"""Generated scenes: a detection data set that needs no download, written in COCO's format."""

from defeat.data.scenes.scene import Scene, SceneObject, render_scene
from defeat.data.scenes.shapes import CLASSES
from defeat.data.scenes.store import GENERATOR_VERSION, generate_scenes, read_scenes

__all__ = [
    "CLASSES",
    "GENERATOR_VERSION",
    "Scene",
    "SceneObject",
    "generate_scenes",
    "read_scenes",
    "render_scene",
]

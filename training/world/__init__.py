"""The toy world: a seeded renderer in which subject, identity, scene and style of every picture are known."""

from .prompts import write_prompt as write_prompt
from .render import draw as draw
from .render import render as render
from .specs import NO_STYLE as NO_STYLE
from .specs import Picture as Picture
from .specs import Pose as Pose
from .specs import Scene as Scene
from .specs import Style as Style
from .specs import Subject as Subject
from .specs import draw_pose as draw_pose
from .specs import draw_scene as draw_scene
from .specs import draw_style as draw_style
from .specs import draw_subject as draw_subject
from .specs import recolour as recolour
from .specs import settle as settle
from .techniques import Drawing as Drawing
from .techniques import stylise as stylise

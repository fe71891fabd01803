"""ComfyUI workflow <-> request: what a workflow means for the form, and the current request as a workflow.

A workflow is untrusted text: it is parsed, never run, and no path in it is opened.
"""

from uso_core.comfy.formats import workflow_in_exif, workflow_in_png_text
from uso_core.comfy.read import ComfyImport, import_workflow
from uso_core.comfy.write import MODEL_FILES, export_api, export_workflow

__all__ = [
    "MODEL_FILES",
    "ComfyImport",
    "export_api",
    "export_workflow",
    "import_workflow",
    "workflow_in_exif",
    "workflow_in_png_text",
]

"""The forms that a fit knows by name: what the files of this folder list in their FORMS. A new form is one such file."""

from __future__ import annotations

import importlib
import pkgutil

from megatron.scaling.law.form import Form

MODULES = [importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__)]
FORMS: dict[str, Form] = {form.name: form for module in MODULES for form in module.FORMS}

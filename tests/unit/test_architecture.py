"""Data flows downward: a file imports only from files above it, and heavy optional packages in one place each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src" / "pbsd"

# From top to bottom; a folder stands for its files, which may import each other unless a later test says otherwise.
LAYERS = [
    "theory", "strict_json", "templates", "reading", "redact", "run_paths",
    "records", "losses", "pairs", "diagnostics", "products", "logprobs", "scoring", "rollouts", "teacher",
    "config", "rewards",
    "lab", "chat", "completions", "render", "benchmarks",
    "data", "intervals", "engine", "samples", "distillation", "handover", "accuracy", "methods", "hub",
    "loop", "determines", "checkpoints", "resumable", "trainer",
    "adapters", "stacking", "loading", "model_checks", "api",
    "recipe", "progress", "run_start", "run", "compare", "evaluate", "pilot", "advise", "figures", "theory_commands",
    "memory", "inspect_recipe", "show_options", "weightless", "report", "cli",
]  # fmt: skip


def modules():
    named = [(path, path.relative_to(SOURCE).with_suffix("").parts) for path in sorted(SOURCE.rglob("*.py"))]
    return [(path, parts[0]) for path, parts in named if parts != ("__init__",)]


def imports(path):
    """Top-level names of pbsd, and full names of everything, that a file imports."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_every_module_has_a_layer():
    assert {layer for _, layer in modules()} == set(LAYERS)


@pytest.mark.parametrize(("path", "layer"), modules(), ids=lambda value: getattr(value, "stem", value))
def test_imports_point_upward(path, layer):
    for name in imports(path):
        if name.startswith("pbsd."):
            other = name.split(".")[1]
            assert other in LAYERS and LAYERS.index(other) <= LAYERS.index(layer), f"{path.name} imports {name}"


def test_losses_and_logprobs_know_torch_only():
    for path in [*(SOURCE / "losses").glob("*.py"), SOURCE / "logprobs.py", SOURCE / "products.py"]:
        for name in imports(path):
            assert name == "pbsd.products.linear" or name.split(".")[0] in {"torch", *sys.stdlib_module_names}, (
                f"{path.name} imports {name}"
            )


def test_theory_knows_numpy_and_scipy_only():
    allowed = {"numpy", "scipy", "__future__", *sys.stdlib_module_names}
    for path in (SOURCE / "theory").glob("*.py"):
        for name in imports(path):
            assert name.startswith("pbsd.theory") or name.split(".")[0] in allowed, f"{path.name} imports {name}"


def test_methods_do_not_import_each_other():
    for path in (SOURCE / "methods").glob("*.py"):
        for name in imports(path):
            assert not name.startswith("pbsd.methods") or name.startswith("pbsd.methods.method."), path.name


@pytest.mark.parametrize("package", ["peft", "math_verify", "matplotlib", "reasoning_gym"])
def test_an_optional_package_is_imported_late(package):
    for path, _ in modules():
        top = [
            node for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.Import | ast.ImportFrom)
        ]
        assert package not in {name.split(".")[0] for node in top for name in [getattr(node, "module", "") or ""]}


def test_importing_the_package_is_light():
    code = "import sys, pbsd, pbsd.cli, pbsd.rewards; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False False\n"

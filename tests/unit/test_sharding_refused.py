"""Sharding is refused by name wherever it comes from: options, the environment, from_pretrained, the model, accelerate.

Under FSDP2 the teacher would silently be the student, and on a CPU accelerate drops the plugin without a word.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from conftest import ROWS, contains_answer, tiny_model
from torch import nn

from pbsd import GRPOConfig, PBSDConfig, PBSDTrainer
from pbsd.config.sharding import check_accelerator, check_environment, check_model

WAY_OUT = "the teacher would silently be the student.*torchrun.*use_peft"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fsdp", True),
        ("fsdp", "full_shard auto_wrap"),
        ("fsdp_config", {"version": 2}),
        ("fsdp_config", "fsdp.json"),
        ("deepspeed", {"zero_optimization": {"stage": 3}}),
        ("deepspeed", "zero3.json"),
        ("parallelism_config", ParallelismConfig(tp_size=2)),
        ("parallelism_config", ParallelismConfig(cp_size=2)),
    ],
)
@pytest.mark.parametrize("config", [PBSDConfig, GRPOConfig])
def test_options(config, name, value):
    with pytest.raises(ValueError, match=f"(?s)^{name}=.* is refused.*{WAY_OUT}"):
        config(use_cpu=True, **{name: value})


@pytest.mark.parametrize("flag", ["--fsdp=full_shard", "--deepspeed=zero3.json"])
def test_a_recipe(recipe, flag):
    done = subprocess.run(
        [sys.executable, "-m", "pbsd.cli", "train", str(recipe), flag],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    name = flag.strip("-").split("=")[0]
    assert done.returncode != 0 and f"{name}=" in done.stderr and "is refused" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_USE_FSDP", "true"),
        ("ACCELERATE_USE_DEEPSPEED", "true"),
        ("ACCELERATE_USE_MEGATRON_LM", "1"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
        ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2"),
        ("FSDP_VERSION", "2"),
        ("FSDP_SHARDING_STRATEGY", "FULL_SHARD"),
        ("FSDP_OFFLOAD_PARAMS", "true"),
        ("MEGATRON_LM_TP_DEGREE", "2"),
        ("PARALLELISM_CONFIG_CP_SIZE", "2"),
        ("SM_HP_MP_PARAMETERS", '{"partitions": 2}'),
    ],
)
def test_the_environment(monkeypatch, config, tokenizer, name, value):
    """Before the options are made (transformers acts on some already there), and when it is set afterwards."""
    args = config()
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"(?s)the environment sets {name}.*{WAY_OUT}"):
        config()
    with pytest.raises(ValueError, match=f"the environment sets {name}"):
        PBSDTrainer(tiny_model(tokenizer), args, ROWS, None, contains_answer, tokenizer)


def test_an_environment_that_shards_nothing_is_let_through():
    """What `accelerate launch` sets for data parallelism, and sizes of 1."""
    check_environment(
        {
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_MIXED_PRECISION": "bf16",
            "ACCELERATE_USE_FSDP": "false",
            "ACCELERATE_USE_DEEPSPEED": "",
            "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
            "PARALLELISM_CONFIG_DP_REPLICATE_SIZE": "1",
            "PARALLELISM_CONFIG_CP_BACKEND": "torch",
        }
    )


def test_accelerate_launch_with_fsdp(tmp_path, recipe):
    """On a CPU accelerate itself would drop the plugin and train by DDP."""
    launch = tmp_path / "accelerate.json"
    launch.write_text(
        json.dumps(
            {"compute_environment": "LOCAL_MACHINE", "distributed_type": "FSDP", "use_cpu": True, "num_processes": 2,
             "num_machines": 1, "machine_rank": 0, "main_training_function": "main", "mixed_precision": "no",
             "fsdp_config": {"fsdp_version": 2}}
        )
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(launch), "-m", "pbsd.cli", "train",
         str(recipe)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0 and "the environment sets ACCELERATE_USE_FSDP" in done.stderr
    assert not (recipe.parent / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [("tp_plan", "auto"), ("tp_size", 2), ("distributed_config", {"tp_size": 2}), ("device_mesh", "mesh")],
)
def test_loading(config, name, value):
    with pytest.raises(ValueError, match=f"(?s)model_init_kwargs has {name}.*{WAY_OUT}"):
        config(model_init_kwargs={name: value})
    if isinstance(value, str | int):
        with pytest.raises(ValueError, match=f"model_init_kwargs has {name}"):
            config(model_init_kwargs=json.dumps({name: value}))  # as on the command line


def test_a_model_spread_over_devices(config, tokenizer):
    model = tiny_model(tokenizer)
    model.hf_device_map = {"model": 0, "lm_head": "cpu"}
    with pytest.raises(ValueError, match="(?s)spread by device_map over 0, cpu.*one device"):
        PBSDTrainer(model, config(), ROWS, None, contains_answer, tokenizer)


def test_a_model_on_one_device_by_device_map(config, tokenizer, tmp_path):
    tiny_model(tokenizer).save_pretrained(tmp_path / "model")
    args = config(model_init_kwargs={"device_map": "cpu"}, max_steps=1)
    PBSDTrainer(str(tmp_path / "model"), args, ROWS, None, contains_answer, tokenizer).train()


@pytest.fixture
def one_process(tmp_path):
    """A process group of this process alone, in which models can really be sharded."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    torch.distributed.destroy_process_group()
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState._reset_state()


def test_a_sharded_model(one_process, config, tokenizer):
    model = tiny_model(tokenizer)
    torch.distributed.fsdp.fully_shard(model, mesh=one_process)
    with pytest.raises(ValueError, match=f"(?s)the model is wrapped in FSDPModule.*{WAY_OUT}"):
        PBSDTrainer(model, config(), ROWS, None, contains_answer, tokenizer)


def test_a_tensor_parallel_model(one_process, tokenizer):
    from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

    model = tiny_model(tokenizer)
    parallelize_module(model.model.layers[1].mlp.up_proj, one_process, ColwiseParallel())
    with pytest.raises(ValueError, match="its model.layers.1.mlp.up_proj.weight is a DTensor"):
        check_model(model)


def test_a_wrapped_model(tokenizer):
    with pytest.raises(ValueError, match="wrapped in DataParallel"):
        check_model(nn.DataParallel(tiny_model(tokenizer)))
    model = tiny_model(tokenizer)
    model.lm_head.weight.ds_id = 3
    with pytest.raises(ValueError, match=r"sharded by DeepSpeed \(its (lm_head|model.embed_tokens).weight"):
        check_model(model)


class _Accelerator:
    """What accelerate says of itself. The real one makes these plugins on GPUs and with other packages only."""

    def __init__(self, kind="MULTI_GPU", sizes=None, **plugins):
        self.state = type("State", (), {"distributed_type": kind, **plugins})()
        self.parallelism_config = sizes


@pytest.mark.parametrize(
    ("accelerator", "named"),
    [
        (_Accelerator("FSDP", fsdp_plugin=object()), "fsdp_plugin, distributed type FSDP"),
        (_Accelerator(fsdp_plugin=object()), "fsdp_plugin"),
        (_Accelerator("DEEPSPEED", deepspeed_plugin=object()), "deepspeed_plugin"),
        (_Accelerator("MEGATRON_LM", megatron_lm_plugin=object()), "megatron_lm_plugin"),
        (_Accelerator("A_LATER_KIND"), "distributed type A_LATER_KIND"),
        (_Accelerator(sizes=ParallelismConfig(tp_size=2)), "parallelism_config with tp_size 2"),
        (_Accelerator(sizes=ParallelismConfig(dp_shard_size=2)), "parallelism_config with dp_shard_size 2"),
    ],
)
def test_accelerate(accelerator, named):
    with pytest.raises(ValueError, match=f"(?s)accelerate is set up with {named}.*{WAY_OUT}"):
        check_accelerator(accelerator)


def test_data_parallelism_is_let_through(make_trainer):
    check_accelerator(make_trainer().accelerator)
    check_accelerator(_Accelerator("MULTI_GPU", ParallelismConfig(dp_replicate_size=2)))


def test_several_gpus_in_one_process(config, tokenizer):
    """transformers would wrap the model in nn.DataParallel, which hands every GPU the whole batch of prompts."""
    args = config()
    args._n_gpu = 2
    with pytest.raises(ValueError, match="(?s)sees 2 GPUs.*torchrun.*CUDA_VISIBLE_DEVICES"):
        PBSDTrainer(tiny_model(tokenizer), args, ROWS, None, contains_answer, tokenizer)

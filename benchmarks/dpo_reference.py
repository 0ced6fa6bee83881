"""Memory and time of DPO's three ways to get reference log-probabilities: precomputed, live, LoRA's adapter off.

    python benchmarks/dpo_reference.py                            # a random model of 117 million parameters

A model of Qwen3's architecture with random weights; 16 pairs of about 300 tokens, two steps of 4 pairs. Each way runs
in a process of its own. Prints peak memory and time, each as a ratio to the live reference.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time

WAYS = {"live": {}, "precomputed": {"precompute_ref_log_probs": True}, "LoRA": {}}


def measure(way: str, layers: int, width: int) -> dict:
    """Peak memory (MB, of the process or of the GPU) and seconds of preparing and of training."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config
    from trl import DPOConfig, DPOTrainer

    torch.manual_seed(0)
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    tokenizer = AutoTokenizer.from_pretrained(f"{root}/tiny/base")
    shape = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers, "head_dim": 64}
    heads = {"num_attention_heads": width // 64, "num_key_value_heads": width // 64}
    config = Qwen3Config(vocab_size=32_000, tie_word_embeddings=True, **shape, **heads)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)  # the live reference is loaded from there
        model = AutoModelForCausalLM.from_pretrained(folder)
        words = " one two three four five six seven eight nine ten"
        rows = Dataset.from_list([
            {"prompt": f"Count to {n}:", "chosen": words * 8, "rejected": words * 6 + f" {n}"} for n in range(16)
        ])  # fmt: skip
        started = time.perf_counter()
        trainer = DPOTrainer(
            model=model,
            args=DPOConfig(
                output_dir=folder, max_steps=2, per_device_train_batch_size=4, report_to="none", save_strategy="no",
                gradient_checkpointing=False, disable_tqdm=True, max_length=512,
                use_cpu=not torch.cuda.is_available(), bf16=torch.cuda.is_available(), **WAYS[way],
            ),
            train_dataset=rows,
            processing_class=tokenizer,
            peft_config=LoraConfig(r=16, target_modules="all-linear") if way == "LoRA" else None,
        )  # fmt: skip
        prepared = time.perf_counter()
        trainer.train()
        trained = time.perf_counter()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 1e6
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    parameters = sum(p.numel() for p in model.parameters())
    return {"peak": peak, "prepare": prepared - started, "train": trained - prepared, "parameters": parameters}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way, arguments.layers, arguments.width)))
        return
    found = {}
    for way in WAYS:
        words = ["--way", way, "--layers", str(arguments.layers), "--width", str(arguments.width)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found[way] = json.loads(done.stdout.strip().splitlines()[-1])
    live = found["live"]
    print(f"live: {live['parameters'] / 1e6:.0f} million parameters, peak {live['peak']:,.0f} MB")
    for way, figures in found.items():
        ratios = {name: figures[name] / live[name] for name in ("peak", "train")}
        before = figures["prepare"] / live["train"]
        print(f"{way}: peak {ratios['peak']:.2f}, training {ratios['train']:.2f}, before it {before:.2f} of that")


if __name__ == "__main__":
    main()

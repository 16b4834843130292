"""Settings under the names that other tools give them: what a wrong guess at a name or a value means here."""

import re

# a pattern for "key=value" as it was typed, and the remedy; \1 is the first group
GUESSES: tuple[tuple[str, str], ...] = (
    (r"(?:lr|learning_rate|base_lr)=(.*)", r"use optimizer.lr=\1"),
    (r"(?:wd|weight_decay)=(.*)", r"use optimizer.weight_decay=\1"),
    (r"(?:trainer\.)?(?:gpus|num_gpus|ngpus|nproc_per_node|devices|world_size)=(.*)", r"use trainer.devices=\1"),
    (r"(?:trainer\.)?(?:nodes|nnodes|num_nodes)=(.*)", r"use trainer.num_nodes=\1"),
    (r"(?:trainer\.)?(?:device|accelerator)=(.*)", r"use trainer.accelerator=\1"),
    (r"(?:epochs?|num_epochs|n_epochs|max_epochs?)=(.*)", r"use trainer.max_epochs=\1"),
    (r"(?:trainer\.)?(?:steps|num_steps|max_steps|iters)=(.*)", r"use trainer.max_steps=\1"),
    (r"(?:trainer\.)?(?:fp16|half|amp)=.*", "use trainer.precision=16-mixed, or bf16-mixed"),
    (r"(?:trainer\.)?precision=(?:fp16|half|float16|amp)", "use trainer.precision=16-mixed"),
    (r"(?:trainer\.)?precision=(?:bfloat16|bf16-amp)", "use trainer.precision=bf16-mixed"),
    (r"(?:trainer\.)?precision=(?:fp32|float32|full|single)", "use trainer.precision=32-true"),
    (r"precision=(.*)", r"use trainer.precision=\1"),
    (r"(?:trainer\.)?(?:grad_accum\w*|accumulat\w*|gradient_accumulation_steps)=(.*)",
     r"use trainer.accumulate_grad_batches=\1"),
    (r"(?:trainer\.)?(?:clip_grad|grad_clip|max_norm|clip\w*)=(.*)", r"use trainer.gradient_clip_val=\1"),
    (r"(?:bs|batch|batchsize|train_batch_size|data\.batch_size)=(.*)", r"use batch_size=\1"),
    (r"(?:img_size|input_size|resolution|image|imgsz|model\.img_size|data\.img_size)=(.*)", r"use image_size=\1"),
    (r"(?:data\.)?(?:workers|num_workers)=(.*)", r"use data.num_workers=\1"),
    (r"(?:dataset|data_set)=(.*)", r"use data=\1"),
    (r"(?:data_path|data_root|root|data\.dir|data\.root)=(.*)", r"use data_dir=\1"),
    (r"(?:arch|architecture|net|network|model_name)=(.*)", r"use model=\1, or model=timm model.model_name=\1"),
    (r"(?:opt|optim)=(.*)", r"use optimizer=\1"),
    (r"(?:sched|scheduler|lr_scheduler)=(.*)", r"use schedule=\1"),
    (r"(?:schedule\.)?warmup_epochs=(.*)", r"use schedule=warmup_cosine schedule.warmup_epochs=\1"),
    (r"(?:schedule\.)?(?:warmup_ratio|warmup_fraction|pct_start)=(.*)", r"use schedule.warmup_fraction=\1"),
    (r"(?:schedule\.)?(?:warmup|warmup_steps)=(.*)", r"use schedule.warmup_steps=\1 (optimizer steps)"),
    (r"(?:model\.)?pretrained=(?:true|True|1|yes)", "use model=auto model.weights=timm:NAME, hf:NAME or FILE"),
    (r"(?:model\.)?(?:pretrained|weights|checkpoint_path)=(.*)", r"use model=auto model.weights=\1"),
    (r"(?:ckpt|ckpt_path|checkpoint|resume_from|resume_from_checkpoint)=(.*)", r"use resume=\1"),
    (r"(?:output|out|output_dir|save_dir|log_dir|run_dir|exp_name|logdir)=(.*)", r"use hydra.run.dir=\1"),
    (r"(?:monitor|metric)=(.*)", r"use objective=\1"),
    (r"(?:random_seed|manual_seed)=(.*)", r"use seed=\1"),
    (r"(?:wandb|use_wandb|wandb_mode)=(?:off|false|False|no|none|0|disabled|null)|no_wandb=.*", "use logger=csv"),
    (r"wandb=.*|use_wandb=.*", "use logger=wandb"),
    (r"logger=(?:none|null|None|off|false|False|no)", "use logger=csv: metrics.csv is always written"),
    (r"(?:smoothing|label_smoothing)=(.*)", r"use classifier.label_smoothing=\1"),
    (r"(mixup|cutmix|erasing|flip)=(.*)", r"use data.augment.\1=\2"),
    (r"(drop_path|init|dropout|depth|dim|heads|mlp_ratio|patch_size|num_registers)=(.*)", r"use model.\1=\2"),
    (r"(?:embed_dim|hidden_size|width|model\.(?:embed_dim|hidden_size|width))=(.*)", r"use model.dim=\1"),
    (r"(?:num_heads|model\.num_heads)=(.*)", r"use model.heads=\1"),
    (r"(?:num_layers|layers|model\.num_layers)=(.*)", r"use model.depth=\1"),
    (r"(?:ema|use_ema)=.*", "use callbacks=ema"),
    (r"(?:early_stopping|patience)=.*", "use callbacks=early_stopping"),
    (r"(?:num_classes|nb_classes)=.*", "leave it out: the data has its number of classes"),
    (r"model=(?!vit)([\w.]+)", r"use model=timm model.model_name=\1 for a model of timm"),
    (r"model=(vit_\w+patch\w+.*)",
     r"use model=timm model.model_name=\1, or its weights: model=auto model.weights=timm:\1"),
    (r"(optimizer|schedule|logger)=((?:\w+\.)+\w+)",
     r"write a YAML with _target_: \2, as in docs/your_own_code.md"),
    (r"callbacks=(?:early_?stop\w*|earlystopping)", "use callbacks=early_stopping"),
)  # fmt: skip


def advice(line: str) -> str | None:
    """What an override of another tool's name or value means here; None if it is none of these."""
    for pattern, remedy in GUESSES:
        if match := re.fullmatch(pattern, line.lstrip("+")):
            return match.expand(remedy)
    return None


def without_dashes(arguments: list[str], flags: set[str]) -> list[str]:
    """Rewrite `--key=value`, `--key value` and `--key` as Hydra's `key=value`; `flags` are Hydra's own."""
    result, words = list[str](), list(arguments)
    while words:
        word = words.pop(0)
        if not word.startswith("--") or word == "--" or word.partition("=")[0] in flags:
            result.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals:
            follows = bool(words) and not (words[0].startswith("-") or "=" in words[0])
            value = words.pop(0) if follows else "true"
        result.append(f"{name.replace('-', '_')}={value}")
    return result

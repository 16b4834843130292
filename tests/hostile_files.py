"""Small files that stand for more values than a memory holds."""


def alias_bomb(levels: int = 30) -> str:
    """A few lines of YAML that stand for 9 to the power of `levels` values."""
    lines = ["a0: &a0 [x, x]", *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels))]
    return "\n".join(lines) + "\n"


def merge_bomb(levels: int = 30) -> str:
    """The same with merged mappings."""
    lines = ["a0: &a0 {x: 1}", *(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, levels))]
    return "\n".join(lines) + "\n"

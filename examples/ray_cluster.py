"""Convert on a Ray cluster, or on this machine: `python examples/ray_cluster.py MODEL DATA [ADDRESS]`."""

import sys

import protonmf_cli as protonmf


def main(model: str, data: str, address: str = "local") -> None:
    found = protonmf.convert(
        model, data, output="prototypes.safetensors", distribution=protonmf.Distribution(ray=address)
    )
    print(f"{found.loaded.path}: {found.bytes / 2**20:.1f} MiB, agreement {found.figures.agreement:.2%}")


if __name__ == "__main__":
    main(*sys.argv[1:])

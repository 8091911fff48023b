"""A task that needs no rank."""


def prepare(config):
    return {"devices": list(config.cluster.named_devices())}


def report(result, console):
    console.print(f"planned for {len(result['devices'])} devices")

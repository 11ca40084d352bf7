"""A JobSet for Google Kubernetes Engine (jobset.x-k8s.io/v1alpha2)."""

from typing import Any

from mixdistill.errors import UserError
from mixdistill.launch.as_yaml import as_yaml
from mixdistill.launch.job import GRACE, PORT, Job

USES = (
    *("image", "namespace", "queue", "priority", "reservation", "service_account", "volume", "spot"),
    "restarts",
)


def write(job: Job) -> str:
    """As YAML."""
    return as_yaml(jobset(job))


def submit(path: str, job: Job) -> list[list[str]]:
    """What hands it in."""
    return [["kubectl", "apply", "-f", path]]


def jobset(job: Job) -> dict[str, Any]:
    """One replicated job whose replicas are slices (of GPUs: one). A pod that fails ends its slice, and the whole set
    starts again; the run goes on from its last checkpoint."""
    if job.image is None:
        raise UserError("a JobSet needs --image, in which mixdistill and the recipe are installed")
    if job.machine.kind == "cpu":
        raise UserError("a JobSet needs --topology with accelerators")
    labels = {"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {}
    # A node pool is one slice: no two slices share one.
    alone = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
    metadata = {
        "name": job.name,
        "namespace": job.namespace,
        "labels": labels,
        "annotations": alone if job.machine.kind == "tpu" else {},
    }
    inner = {"name": "slice", "replicas": job.machine.slices, "template": {"spec": _job(job)}}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": _given(metadata),
        "spec": {"failurePolicy": _restarts(job), "replicatedJobs": [inner]},
    }


# Exit code of bad input: starting again would read it again.
BAD_INPUT = 2


def _restarts(job: Job) -> dict[str, Any]:
    """All of the set starts again when a pod is lost, and none when one has read bad input."""
    never = {"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {"maxRestarts": job.restarts, "rules": [never]}


def _job(job: Job) -> dict[str, Any]:
    """A batch/v1 JobSpec: one pod a host, none of which is started again alone."""
    hosts = job.machine.hosts
    return {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {
                    "action": "FailJob",
                    "onExitCodes": {"containerName": "train", "operator": "In", "values": [BAD_INPUT]},
                }
            ]
        },
        "template": {
            # The autoscaler must not empty a host in the middle of a run to save a node.
            "metadata": {"annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}},
            "spec": _given(_pod(job)),
        },
    }


def _pod(job: Job) -> dict[str, Any]:
    volumes = [volume.split(":", 1) for volume in job.volume]
    if any(len(volume) != 2 for volume in volumes):
        raise UserError(f"--volume {job.volume}: write CLAIM:PATH")
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "hostNetwork": True,
        "dnsPolicy": "ClusterFirstWithHostNet",
        "serviceAccountName": job.service_account,
        "priorityClassName": job.priority,
        "nodeSelector": _selector(job),
        "tolerations": [{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true"}]
        if job.spot
        else None,
        "containers": [_given(_container(job, volumes))],
        "volumes": [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim, _ in volumes],
    }


def _selector(job: Job) -> dict[str, str]:
    label = {"tpu": "cloud.google.com/gke-tpu-accelerator", "gpu": "cloud.google.com/gke-accelerator"}
    found = {label[job.machine.kind]: job.machine.gke}
    if job.machine.kind == "tpu":
        found["cloud.google.com/gke-tpu-topology"] = job.machine.topology
    if job.reservation:
        found["cloud.google.com/reservation-name"] = job.reservation
    if job.spot:
        found["cloud.google.com/gke-spot"] = "true"
    return found


def _container(job: Job, volumes: list[list[str]]) -> dict[str, Any]:
    resource = {"tpu": "google.com/tpu", "gpu": "nvidia.com/gpu"}[job.machine.kind]
    chips = {resource: job.machine.chips_a_host}
    return {
        "name": "train",
        "image": job.image,
        # `exec`: the signal reaches the program, not a shell.
        "command": ["bash", "-c", f"exec {job.command}"],
        "env": [*_coordinator(job), *(_secret(*item) for item in job.references().items())],
        "ports": [{"containerPort": PORT}],
        "resources": {"requests": dict(chips), "limits": dict(chips)},
        "volumeMounts": [{"name": claim, "mountPath": path} for claim, path in volumes],
    }


def _coordinator(job: Job) -> list[dict[str, Any]]:
    """On TPUs jax finds its neighbours by itself; on GPUs the first pod of the set is the coordinator."""
    if job.machine.kind == "tpu" or job.hosts == 1:
        return []
    index = {"fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
    return [
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{job.name}-slice-0-0.{job.name}:{PORT}"},
        {"name": "MIXDISTILL_PROCESSES", "value": str(job.hosts)},
        {"name": "MIXDISTILL_PROCESS", "valueFrom": index},
    ]


def _secret(name: str, where: str) -> dict[str, Any]:
    secret, separator, key = where.partition("/")
    if not (separator and secret and key):
        raise UserError(f"--env {name}={where}: write NAME=SECRET/KEY, a key of a Kubernetes secret")
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _given(fields: dict[str, Any]) -> dict[str, Any]:
    """Without what is None or empty."""
    return {name: value for name, value in fields.items() if value not in (None, [], {})}

package packages

import (
	"bytes"
	"maps"
	"os"
	"path"
	"reflect"
	"strconv"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
	kustomize "sigs.k8s.io/kustomize/api/types"
	"sigs.k8s.io/yaml"
)

const pods = examples + "/kubernetes/"

// decode decodes YAML strictly: an unknown or repeated field is an error.
func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	if err := yaml.UnmarshalStrict(text, into); err != nil {
		t.Fatal(err)
	}
}

func read(t *testing.T, file string) []byte {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestKubernetes: the manifests are valid, the pod meets the Pod Security Standard "restricted", and ports, files, probes
// and times are those of the Caddyfile.
func TestKubernetes(t *testing.T) {
	var set kustomize.Kustomization
	decode(t, read(t, pods+"kustomization.yaml"), &set)
	var namespace corev1.Namespace
	decode(t, read(t, pods+"namespace.yaml"), &namespace)
	manifests := bytes.Split(read(t, pods+"gateway.yaml"), []byte("\n---\n"))
	if len(manifests) != 3 || !in(set.Resources, "namespace.yaml", "gateway.yaml") || len(set.Resources) != 2 {
		t.Fatalf("got %d manifests and %v", len(manifests), set.Resources)
	}
	var workload appsv1.StatefulSet
	var service corev1.Service
	var network networkingv1.NetworkPolicy
	decode(t, manifests[0], &workload)
	decode(t, manifests[1], &service)
	decode(t, manifests[2], &network)
	for kind, meta := range map[string]struct{ version, kind string }{
		"apps/v1 StatefulSet": {workload.APIVersion, workload.Kind}, "v1 Service": {service.APIVersion, service.Kind},
		"networking.k8s.io/v1 NetworkPolicy": {network.APIVersion, network.Kind}, "v1 Namespace": {namespace.APIVersion, namespace.Kind},
	} {
		if got := meta.version + " " + meta.kind; got != kind {
			t.Errorf("got %s, want %s", got, kind)
		}
	}
	template := workload.Spec.Template
	labels := template.Labels
	if !maps.Equal(workload.Spec.Selector.MatchLabels, labels) || !maps.Equal(service.Spec.Selector, labels) || !maps.Equal(network.Spec.PodSelector.MatchLabels, labels) {
		t.Errorf("the selectors are not the labels %v", labels)
	}
	if set.Namespace != namespace.Name || *workload.Spec.Replicas != 1 || workload.Spec.ServiceName != service.Name {
		t.Errorf("got namespace %s, %d replicas, service %s", set.Namespace, *workload.Spec.Replicas, workload.Spec.ServiceName)
	}

	if level := namespace.Labels[api.EnforceLevelLabel]; level != string(api.LevelRestricted) {
		t.Errorf("got level %q", level)
	}
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	restricted := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
	for _, result := range evaluator.EvaluatePod(restricted, &template.ObjectMeta, &template.Spec) {
		if !result.Allowed {
			t.Errorf("not restricted: %s: %s", result.ForbiddenReason, result.ForbiddenDetail)
		}
	}
	for _, container := range template.Spec.Containers {
		if root := container.SecurityContext.ReadOnlyRootFilesystem; root == nil || !*root {
			t.Errorf("%s: the root file system can be written", container.Name)
		}
	}
	if !*template.Spec.SecurityContext.RunAsNonRoot || *template.Spec.AutomountServiceAccountToken {
		t.Errorf("the pod has rights that it does not need")
	}

	conf := readSite(t, pods+"Caddyfile", nil)
	gateway := template.Spec.Containers[1]
	if set.Images[0].Name != gateway.Image || gateway.Name != "gateway" {
		t.Errorf("got container %s with image %s", gateway.Name, gateway.Image)
	}
	ports := map[string]string{}
	for _, port := range gateway.Ports {
		ports[port.Name] = strconv.Itoa(int(port.ContainerPort))
		if !in(conf.ports, ports[port.Name]) {
			t.Errorf("port %s: got %s, want one of %v", port.Name, ports[port.Name], conf.ports)
		}
	}
	for _, port := range append(network.Spec.Ingress[0].Ports, networkingv1.NetworkPolicyPort{Port: &service.Spec.Ports[0].TargetPort}) {
		if ports[port.Port.String()] == "" {
			t.Errorf("the container has no port %s", port.Port)
		}
	}
	for want, probe := range map[string]*corev1.Probe{"/live": gateway.LivenessProbe, "/ready": gateway.ReadinessProbe} {
		if get := probe.HTTPGet; get.Path != want || !conf.probes[ports[get.Port.String()]+get.Path] {
			t.Errorf("got probe %s at %s, want %s, one of %v", get.Path, ports[get.Port.String()], want, conf.probes)
		}
	}
	if start := gateway.StartupProbe.HTTPGet; !reflect.DeepEqual(start, gateway.LivenessProbe.HTTPGet) {
		t.Errorf("got startup probe %v", start)
	}
	// The readiness probe fails, and takes the pod out, before the delay is over.
	if period := time.Duration(gateway.ReadinessProbe.PeriodSeconds*gateway.ReadinessProbe.FailureThreshold) * time.Second; period > 10*time.Second {
		t.Errorf("the pod is ready for %v after the beginning of its end", period)
	}
	if end := time.Duration(*template.Spec.TerminationGracePeriodSeconds) * time.Second; conf.ending >= end {
		t.Errorf("the end takes up to %v, and is cut after %v", conf.ending, end)
	}

	volumes := map[string]bool{workload.Spec.VolumeClaimTemplates[0].Name: true}
	for _, v := range template.Spec.Volumes {
		volumes[v.Name] = true
		if v.ConfigMap != nil && v.ConfigMap.Name != set.ConfigMapGenerator[0].Name {
			t.Errorf("there is no ConfigMap %s", v.ConfigMap.Name)
		}
	}
	mounts := map[string]string{}
	for _, c := range template.Spec.Containers {
		for _, m := range c.VolumeMounts {
			if !volumes[m.Name] {
				t.Errorf("%s: there is no volume %s", c.Name, m.Name)
			}
			if c.Name == "gateway" {
				mounts[m.Name] = m.MountPath
			} else if m.Name != "tmp" {
				t.Errorf("%s: can open volume %s of the gateway", c.Name, m.Name)
			}
		}
	}
	if !inDirectory(conf.store, mounts["data"]) || !inDirectory(conf.socket, mounts["admin"]) || gateway.Env[0].Value != "unix/"+conf.socket {
		t.Errorf("got store %s, socket %s, and mounts %v", conf.store, conf.socket, mounts)
	}
	if file := gateway.Args[3]; path.Dir(file) != mounts["config"] || !in(set.ConfigMapGenerator[0].FileSources, path.Base(file)) {
		t.Errorf("got %s, want a file of %v", file, set.ConfigMapGenerator[0].FileSources)
	}
}

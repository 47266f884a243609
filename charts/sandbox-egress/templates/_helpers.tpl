{{/* Names are fixed: the admission policies and the webhooks name these objects in CEL
     and by reference, and one cluster holds one operator. */}}
{{- define "sandbox-egress.namespace" -}}
{{- if or (eq .Release.Namespace "default") (hasPrefix "kube-" .Release.Namespace) -}}
{{- fail (printf "namespace %q cannot hold the operator: its webhooks leave out the operator's own namespace, so no sandbox may live there; install with --namespace sandbox-egress-system --create-namespace" .Release.Namespace) -}}
{{- end -}}
{{- .Release.Namespace -}}
{{- end }}

{{- define "sandbox-egress.selectorLabels" -}}
app.kubernetes.io/name: sandbox-egress
app.kubernetes.io/component: manager
{{- end }}

{{- define "sandbox-egress.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
app.kubernetes.io/name: sandbox-egress
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "sandbox-egress.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end }}

{{/* Every document of the files that match .glob, as the project's plain manifests have
     them, with this release's namespace and labels. dict "root" $ "glob" "files/x/*.yaml"
     and optionally "annotations", a map for every object but Services. */}}
{{- define "sandbox-egress.manifests" -}}
{{- $root := .root -}}
{{- $annotations := .annotations -}}
{{- $labels := include "sandbox-egress.labels" $root | fromYaml -}}
{{- $namespace := include "sandbox-egress.namespace" $root -}}
{{- range $path, $content := $root.Files.Glob .glob }}
{{- range regexSplit "(?m)^---[ \t]*$" (toString $content | replace "sandbox-egress-system" $namespace) -1 }}
{{- $object := fromYaml . }}
{{- if $object.Error }}{{ fail (printf "%s: %s" $path $object.Error) }}{{ end }}
{{- if $object.kind }}
{{- $metadata := $object.metadata }}
{{- $_ := set $metadata "labels" (merge (dict) $labels (default (dict) $metadata.labels)) }}
{{- if and $annotations (ne $object.kind "Service") }}
{{- $_ := set $metadata "annotations" (merge (dict) $annotations (default (dict) $metadata.annotations)) }}
{{- end }}
---
{{ toYaml $object }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}

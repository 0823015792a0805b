{{- define "sluicegate.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end -}}
{{- end }}

{{- define "sluicegate.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "sluicegate.labels" -}}
{{ include "sluicegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "sluicegate.hosts" -}}
{{- $name := include "sluicegate.name" . -}}
{{- $names := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.cluster.local" $name .Release.Namespace) -}}
{{- concat $names .Values.allowedHosts | toJson -}}
{{- end }}

{{- define "sluicegate.config" -}}
{{- if .Values.config }}{{ .Values.config }}{{ else -}}
account = "main"

[accounts.main]
plan = "main"
key = { file = "/run/secrets/sluicegate/{{ .Values.secret.apiKey }}" }

[plans.main]
{{- range $key, $value := .Values.plan }}
{{ $key }} = {{ $value | int64 }}
{{- end }}
{{ range .Values.clients }}
[[clients]]
name = {{ .name | quote }}
token = { file = "/run/secrets/sluicegate/{{ .token }}" }
{{- with .weight }}
weight = {{ . | int64 }}
{{- end }}
{{ end }}
[server]
listen = "0.0.0.0:8787"
allowed_hosts = {{ include "sluicegate.hosts" . }}
buffer = {{ .Values.buffer | quote }}
drain_timeout = "{{ .Values.drainSeconds | int64 }}s"

[admin]
health_listen = "0.0.0.0:8789"

[state]
path = "/var/lib/sluicegate"
{{ .Values.extraConfig }}
{{- end }}
{{- end }}

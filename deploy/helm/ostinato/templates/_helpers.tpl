{{- define "ostinato.name" -}}
{{- if contains "ostinato" .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-ostinato" .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "ostinato.selector" -}}
app.kubernetes.io/name: ostinato
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "ostinato.labels" -}}
{{ include "ostinato.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "ostinato.image" -}}
{{- $kind := ternary "cuda" "cpu" (gt (int .Values.gpus) 0) -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default (printf "%s-%s" .Chart.AppVersion $kind)) -}}
{{- end -}}

{{- define "ostinato.claim" -}}
{{- .Values.stateStore.folder.claim | default (printf "%s-states" (include "ostinato.name" .)) -}}
{{- end -}}

{{- define "ostinato.storePlace" -}}
{{- if eq .Values.stateStore.kind "folder" -}}
/var/lib/ostinato/states
{{- else if eq .Values.stateStore.kind "none" -}}
none
{{- else -}}
$(OSTINATO_STATE_STORE)
{{- end -}}
{{- end -}}

{{- /* One pod at a time may write to a claim that only one machine can mount. */ -}}
{{- define "ostinato.singleWriter" -}}
{{- if and (eq .Values.stateStore.kind "folder") (ne .Values.stateStore.folder.accessMode "ReadWriteMany") -}}
true
{{- end -}}
{{- end -}}

{{- /* What the schema cannot say, because it concerns several values. */ -}}
{{- define "ostinato.check" -}}
{{- $store := .Values.stateStore -}}
{{- if and (eq $store.kind "url") (eq (empty $store.url) (empty $store.urlSecret.name)) -}}
{{- fail "stateStore.kind is url: set either stateStore.url or stateStore.urlSecret.name" -}}
{{- end -}}
{{- $several := or (gt (int .Values.replicas) 1) .Values.autoscaling.enabled -}}
{{- if and $several (include "ostinato.singleWriter" .) -}}
{{- fail "several pods need one store: set stateStore.kind to url, or stateStore.folder.accessMode to ReadWriteMany" -}}
{{- end -}}
{{- if and .Values.autoscaling.enabled (gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas)) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}

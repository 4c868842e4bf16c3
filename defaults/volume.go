package defaults

import (
	corev1 "k8s.io/api/core/v1"
)

// Modes and lifetimes of what volumes are filled with.
const (
	fileMode     int32 = 0o644
	tokenSeconds int64 = 3600
)

func volume(v *corev1.VolumeSource) {
	if *v == (corev1.VolumeSource{}) {
		v.EmptyDir = &corev1.EmptyDirVolumeSource{}
	}
	if v.HostPath != nil {
		set(&v.HostPath.Type, corev1.HostPathUnset)
	}
	if v.ConfigMap != nil {
		set(&v.ConfigMap.DefaultMode, fileMode)
	}
	if v.Secret != nil {
		set(&v.Secret.DefaultMode, fileMode)
	}
	if v.DownwardAPI != nil {
		set(&v.DownwardAPI.DefaultMode, fileMode)
		downward(v.DownwardAPI.Items)
	}
	if v.Projected != nil {
		set(&v.Projected.DefaultMode, fileMode)
		for _, s := range v.Projected.Sources {
			if s.DownwardAPI != nil {
				downward(s.DownwardAPI.Items)
			}
			if s.ServiceAccountToken != nil {
				set(&s.ServiceAccountToken.ExpirationSeconds, tokenSeconds)
			}
		}
	}
	if v.Ephemeral != nil && v.Ephemeral.VolumeClaimTemplate != nil {
		set(&v.Ephemeral.VolumeClaimTemplate.Spec.VolumeMode, corev1.PersistentVolumeFilesystem)
	}
	if v.ISCSI != nil {
		fill(&v.ISCSI.ISCSIInterface, "default")
	}
	if v.RBD != nil {
		fill(&v.RBD.RBDPool, "rbd")
		fill(&v.RBD.RadosUser, "admin")
		fill(&v.RBD.Keyring, "/etc/ceph/keyring")
	}
	if v.AzureDisk != nil {
		set(&v.AzureDisk.CachingMode, corev1.AzureDataDiskCachingReadWrite)
		set(&v.AzureDisk.Kind, corev1.AzureSharedBlobDisk)
		set(&v.AzureDisk.FSType, "ext4")
		set(&v.AzureDisk.ReadOnly, false)
	}
	if v.ScaleIO != nil {
		fill(&v.ScaleIO.StorageMode, "ThinProvisioned")
		fill(&v.ScaleIO.FSType, "xfs")
	}
	if v.Image != nil {
		fill(&v.Image.PullPolicy, PullPolicy(v.Image.Reference))
	}
}

func downward(items []corev1.DownwardAPIVolumeFile) {
	for i := range items {
		if items[i].FieldRef != nil {
			fill(&items[i].FieldRef.APIVersion, "v1")
		}
	}
}

package hotspare

// Code is a stable identifier of one kind of error, printed in messages, API
// problems and docs/errors.md. A code is never reused for another meaning.
type Code string

// The registry of codes. Each has one line in docs/errors.md; a test compares
// the two. Add at the end of a block.
const (
	// Configuration and input.
	CodeYAML       Code = "CFG-001" // a document does not parse or has an unknown field
	CodeInvalid    Code = "CFG-002" // a field has a value that is not allowed
	CodeUnknownRef Code = "CFG-003" // a resource names another that does not exist
	CodeConflict   Code = "CFG-004" // revision or state conflict
	CodeNotFound   Code = "CFG-005" // no such resource

	// Network services.
	CodePortTaken    Code = "NET-001" // a port is held by another process
	CodeForeignDHCP  Code = "NET-002" // another DHCP server answers on the segment
	CodeOfferIgnored Code = "NET-003" // a machine asks by DHCP and does not take the offer
	CodeAddressInUse Code = "NET-004" // an application's address answers already
	CodeNoTun        Code = "NET-005" // /dev/net/tun is missing or closed
	CodeNoInterface  Code = "NET-006" // a configured interface or address does not exist
	CodePoolEmpty    Code = "NET-007" // no address is free for a machine
	CodeDHCPRefuses  Code = "NET-008" // DHCP turns unknown machines away: too many of them

	// Boot.
	CodeArchMismatch Code = "BOOT-010" // firmware and image are of different architectures
	CodeTransfer     Code = "BOOT-011" // a boot file stalls, is sent again and again, or stops
	CodeLoaderSilent Code = "BOOT-012" // the boot loader was fetched and nothing came of it
	CodeNoAssignment Code = "BOOT-013" // the machine is unknown or nothing is assigned to it
	CodeBootToken    Code = "BOOT-015" // a boot path was asked for without a live token
	CodeInitramfs    Code = "BOOT-016" // the initramfs cannot be built
	CodeLinkLate     Code = "BOOT-017" // the network forwards long after the link is up
	CodeBootLoop     Code = "BOOT-018" // a machine boots again and again
	CodeNeverAsked   Code = "BOOT-019" // a machine was powered on and did not boot from the network
	CodeScriptEnds   Code = "BOOT-020" // the script was fetched, the kernel was not
	CodeKernelSilent Code = "BOOT-021" // the kernel was fetched, the agent was not heard
	CodeBootSlow     Code = "BOOT-022" // a step of the boot takes long for a reason that can be mended

	// BMC.
	CodeBMCUnreachable Code = "BMC-020" // no answer
	CodeBMCPassword    Code = "BMC-022" // user or password refused
	CodeBMCPrivilege   Code = "BMC-023" // the user lacks Operator
	CodeBMCTool        Code = "BMC-027" // ipmitool is not installed
	CodeBMCRefused     Code = "BMC-028" // the BMC answered with an error
	CodeBMCWrongNode   Code = "BMC-029" // the BMC belongs to another machine
	CodeBMCBootOrder   Code = "BMC-030" // the BMC does not keep the boot order

	// Images.
	CodeImageDigest    Code = "IMG-001" // SHA-256 differs
	CodeImageTruncated Code = "IMG-002" // file ends before its contents
	CodeImageBacking   Code = "IMG-003" // backing or external data file
	CodeImageFormat    Code = "IMG-004" // format unknown or not supported
	CodeImageKernel    Code = "IMG-005" // no kernel or modules found
	CodeImageExists    Code = "IMG-006" // that version exists with another content
	CodeImageSignature Code = "IMG-007" // signature missing, not of a trusted key, or wrong
	CodeImageSource    Code = "IMG-008" // a URL or registry that images may not be taken from
	CodeImageFetch     Code = "IMG-009" // a download failed
	CodeImageBuild     Code = "IMG-010" // a step of an image's build failed

	// Storage and iSCSI.
	CodeDiskFull     Code = "STO-001"   // no space left
	CodeCorrupt      Code = "STO-002"   // checksum mismatch; the volume is stopped
	CodeVolumeFailed Code = "STO-003"   // a flush failed; the volume is stopped
	CodeStaleEpoch   Code = "STO-004"   // an effect carries an epoch below the durable one
	CodeVolumeBusy   Code = "STO-005"   // in use
	CodeStoreFormat  Code = "STO-006"   // on-disk format of another version
	CodeStoreLocked  Code = "STO-007"   // another process has the store open
	CodeLoginRefused Code = "ISCSI-030" // initiator, secret or target not admitted
	CodeNoInitiator  Code = "ISCSI-032" // the node's kernel cannot log in, or refused a step of it
	CodeNoSession    Code = "ISCSI-033" // the target cannot be reached, or the log-in or log-out did not complete
	CodeNoDevice     Code = "ISCSI-034" // logged in, but the logical unit did not become a block device

	// High availability.
	CodeFenceUnproven Code = "HA-040" // fence not confirmed: no take-over
	CodeNoCandidate   Code = "HA-041" // no eligible node
	CodeFrozen        Code = "HA-042" // frozen by an operator
	CodeHeld          Code = "HA-043" // held by a guard (storm, budget, isolation)
	CodeCannotArm     Code = "HA-044" // policy leaves no sufficient fence

	// Agent.
	CodeJoinRefused  Code = "AGT-050" // token, boot id or certificate not accepted
	CodeTokenReused  Code = "AGT-051" // a one-time token was presented twice
	CodeOnlineFailed Code = "AGT-052" // a resource did not come online
	CodeNotBlank     Code = "AGT-053" // a volume to be formatted holds data
	CodeWrongKernel  Code = "AGT-054" // the node runs another kernel than the image needs
	CodeKexec        Code = "AGT-055" // the running kernel does not execute another one
	CodeDiskChoice   Code = "AGT-056" // the local disk is not described by exactly one, or must not be overwritten
	CodeContents     Code = "AGT-057" // contents did not arrive, or differ from their digest

	// Lab and host.
	CodeMissingTool Code = "LAB-060" // a program or package is missing
	CodeKVMHangs    Code = "LAB-061" // /dev/kvm exists but hangs guests
	CodeQEMU        Code = "LAB-062" // QEMU did not start or died
	CodeNotRoot     Code = "LAB-063" // the operation needs rights that are missing

	// API.
	CodeUnauthorized Code = "API-070" // no or wrong token
	CodeUnavailable  Code = "API-071" // the appliance does not answer
	CodeInternal     Code = "API-072" // a fault of the product
)

# Has the host write a disk anew, alone and in another form. { operation, source, destination, partial, kind, block_size }
# kind: Fixed or Dynamic. What the host works on is `partial`; `get-job` gives it its name.
# Called again, it starts only what does not run and has not ended. This is what Convert-VHD does, with a job that outlives us.
param([string]$Json)
$ErrorActionPreference = 'Stop'
$ProgressPreference = 'SilentlyContinue'
Set-StrictMode -Version 3
try {
    $argument = ConvertFrom-Json -InputObject $Json
    if ($argument.operation -notmatch '^[0-9A-Za-z-]{1,64}$') { throw 'StorageAgent.InvalidOperation' }
    $root = Join-Path -Path $env:ProgramData -ChildPath 'storage-agent'
    $folder = Join-Path -Path $root -ChildPath $argument.operation
    $file = Join-Path -Path $folder -ChildPath 'record.json'
    $draft = Join-Path -Path $folder -ChildPath 'record.new'
    $record = $null
    if (Test-Path -LiteralPath $file) { $record = Get-Content -LiteralPath $file -Raw | ConvertFrom-Json }
    if ($null -eq $record) {
        if (Test-Path -LiteralPath $argument.destination) { throw 'StorageAgent.DiskExists' }
        $null = New-Item -ItemType Directory -Path $folder -Force
        $record = [pscustomobject]@{
            kind = 'convert'
            source = $argument.source
            path = $argument.destination
            partial = $argument.partial
            job = $null
            ended = $false
        }
        $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
        Move-Item -LiteralPath $draft -Destination $file -Force
    }
    elseif ($record.kind -ne 'convert' -or $record.path -ne $argument.destination) { throw 'StorageAgent.OperationReused' }
    $job = $null
    if ($null -ne $record -and $null -ne $record.job) {
        $job = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_StorageJob |
            Where-Object { $_.InstanceID -eq $record.job }
    }
    if (-not $record.ended -and $null -eq $job -and -not (Test-Path -LiteralPath $argument.destination)) {
        if (Test-Path -LiteralPath $argument.partial) { Remove-Item -LiteralPath $argument.partial -Force }
        $disk = Get-VHD -Path $argument.source
        $types = @{ Fixed = [uint16]2; Dynamic = [uint16]3 }
        $class = Get-CimClass -Namespace root/virtualization/v2 -ClassName Msvm_VirtualHardDiskSettingData
        $settings = New-CimInstance -CimClass $class -ClientOnly -Property @{
            Type = $types[$argument.kind]
            Format = [uint16]3
            Path = $argument.partial
            BlockSize = [uint32]$argument.block_size
            LogicalSectorSize = [uint32]$disk.LogicalSectorSize
            PhysicalSectorSize = [uint32]$disk.PhysicalSectorSize
        }
        $serializer = [Microsoft.Management.Infrastructure.Serialization.CimSerializer]::Create()
        $plain = [Microsoft.Management.Infrastructure.Serialization.InstanceSerializationOptions]::None
        $bytes = $serializer.Serialize($settings, $plain)
        $service = Get-CimInstance -Namespace root/virtualization/v2 -ClassName Msvm_ImageManagementService
        $answer = Invoke-CimMethod -InputObject $service -MethodName ConvertVirtualHardDisk -Arguments @{
            SourcePath = $argument.source
            VirtualDiskSettingData = [System.Text.Encoding]::Unicode.GetString($bytes)
        }
        if ($answer.ReturnValue -ne 4096 -and $answer.ReturnValue -ne 0) { throw 'StorageAgent.JobNotStarted' }
        if ($answer.ReturnValue -eq 4096) { $record.job = $answer.Job.InstanceID }
        else { Move-Item -LiteralPath $argument.partial -Destination $argument.destination }
        $record | ConvertTo-Json -Compress | Set-Content -LiteralPath $draft -Encoding UTF8
        Move-Item -LiteralPath $draft -Destination $file -Force
    }
    $result = @{ started = $true }
    @{ ok = $true; result = $result } | ConvertTo-Json -Compress -Depth 8
}
catch {
    @{
        ok = $false
        id = $_.FullyQualifiedErrorId
        hresult = $_.Exception.GetBaseException().HResult
        category = [string]$_.CategoryInfo.Category
        message = $_.Exception.Message
    } | ConvertTo-Json -Compress
}
